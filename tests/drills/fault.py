"""What a drill is, as data: the fault, what has to hold, and how it is judged.

A Rule holds the figures of the matrix. A call is *bad* if it failed or took longer than `slow`; `recover_s` is how long
after the injection the last bad call began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from drills.site import CLIENTS, ROADS, Setup, Site, Story

__all__ = ["CLIENTS", "FAULTS", "ROADS", "Fault", "Rule", "Setup", "Site", "fault"]

# Nothing here takes so long in health: p99 is some 10 ms on a machine that is not crowded.
SLOW = 0.5
# Whatever happens, nobody makes more of a bad moment than that.
AMPLIFIED = 1.2


@dataclass(frozen=True)
class Rule:
    """Figures to be reached; None is no demand.

    failed: calls that may fail. success: share that has to succeed.
    recover: seconds after the injection in which calls may be bad.
    recover_healed: the same, counted from the end of the fault, for faults that no caller can be kept from.
    p99_after, p99_factor: from so many seconds after the injection on, p99 is at most so many times the one before it.
    attempts: attempts per call, at most, in the whole run and while the fault lasted, where its end is noted.
    calls: at least so many have to be made for the row to count.
    goodput: calls answered well a second, from the injection to the healing and over all roads, as a share of the best
    stretch of `Site.peaks`. refusals: seconds that half of the calls refused with RESOURCE_EXHAUSTED take at most; what
    ninety-nine of a hundred take is told beside it.
    codes: the only codes a failed call may have. words: none of these may stand in an error's text.
    """

    failed: int | None = 0
    success: float | None = None
    recover: float | None = None
    recover_healed: float | None = None
    p99_after: float = 5.0
    p99_factor: float | None = None
    attempts: float | None = AMPLIFIED
    calls: int | None = None
    goodput: float | None = None
    refusals: float | None = None
    codes: Sequence[str] | None = None
    words: Sequence[str] = ()
    slow: float = SLOW


@dataclass(frozen=True)
class Fault:
    """A row of the matrix and the story that tries it."""

    name: str
    sentence: str
    passes: str
    story: Story
    rule: Rule = Rule()
    setup: Setup = field(default_factory=Setup)
    roads: Sequence[str] = ROADS
    note: str = ""
    """What is not as the matrix says, e.g. a shorter time."""
    known: str = ""
    """Why it is not met, where that is known."""
    unmeasured: str = ""
    """What `passes` says and the drill does not measure."""
    soak: bool = False
    """Whether it heals without a trace, so that it can be one of many in a soak."""


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    sentence: str,
    passes: str,
    *,
    rule: Rule = Rule(),
    setup: Setup = Setup(),  # noqa: B008  frozen value
    roads: Sequence[str] = ROADS,
    note: str = "",
    known: str = "",
    unmeasured: str = "",
    soak: bool = False,
) -> Callable[[Story], Story]:
    """Enter a story into the registry."""

    def enter(story: Story) -> Story:
        assert name not in FAULTS, name
        FAULTS[name] = Fault(name, sentence, passes, story, rule, setup, roads, note, known, unmeasured, soak)
        return story

    return enter
