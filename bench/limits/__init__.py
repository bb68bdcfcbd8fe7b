"""What stands in the way of the rows that miss their goal, measured by itself: `python -m bench.limits --list`.

A limit is a figure of somebody else's making: what a raw stub pays for the one thing that ours cannot do without, how
long a bare connection takes. The text under "Not met" on the page names the commands whose figures it quotes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.measure import Finding
from bench.site import Site

Figures = Mapping[str, Finding]
"""By what each is of. One with a ratio is of two arms in turns, with an A/A control."""


@dataclass(frozen=True)
class Limit:
    """What can be asked for by name."""

    name: str
    about: str
    measure: Callable[[Site], Figures]


LIMITS: dict[str, Limit] = {}


def limit(name: str, about: str) -> Callable[[Callable[[Site], Figures]], Callable[[Site], Figures]]:
    """Declare what a function measures."""

    def declare(measure: Callable[[Site], Figures]) -> Callable[[Site], Figures]:
        LIMITS[name] = Limit(name, about, measure)
        return measure

    return declare


def share(site: Site, number: int) -> int:
    """Return how often to look, where a full run does so `number` times."""
    return max(2, round(number * min(1.0, site.scale)))
