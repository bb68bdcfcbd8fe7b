"""What a row of the bench is: what it compares, what it should come to, and the code that measures it.

A module in `bench/rows/` declares its rows by decorating what measures them:

    @measures(Spec("client.one", "One instance, 50 calls in flight", "a raw grpc.aio stub", goal=1.05, moonshot=1.0))
    def one(site: Site) -> Finding: ...

Several specs may stand on one function, which then returns a finding for each by name. `raise Skipped("no Go here")`
says why a row could not be measured.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.measure import Finding

if TYPE_CHECKING:
    from bench.site import Site

Found = Finding | Mapping[str, "Finding"]


class Skipped(Exception):
    """A row cannot be measured here; the text says why. `is_fault`: it should have been."""

    is_fault = False


@dataclass(frozen=True)
class Spec:
    """What a row is about. The name is "<module>.<what>"."""

    name: str
    ours: str
    """What of ours is measured, as the page says it."""
    baseline: str = ""
    """What it is measured against; empty where the goal is an amount."""
    goal: float | None = None
    moonshot: float | None = None
    lower: bool = True
    """Whether less is better."""
    quick: bool = False
    """Whether `--quick` measures it too."""
    noise: float = 0.05
    """What a quick run of the very same code may be worse by, as a share of the ratio: not less than what its processes
    differ by makes of it, in drawn runs of what bench/results/ has of them.
    """
    limit: str = ""
    """What stands in the way, with its evidence; told where the goal is not met."""

    @property
    def command(self) -> str:
        """What to type to measure this row again."""
        return f"python -m bench {self.name}"

    def is_met(self, found: Finding) -> bool | None:
        """Tell whether the goal is met; None where there is none, or where the control says that nothing is known."""
        if self.goal is None or found.is_void:
            return None
        value = found.ratio if found.ratio is not None else found.ours
        return value <= self.goal if self.lower else value >= self.goal


@dataclass(frozen=True)
class Measurement:
    """One or several rows, and what measures them at once."""

    specs: tuple[Spec, ...]
    run: Callable[[Site], Found]

    def findings(self, site: Site) -> dict[str, Finding]:
        """Measure."""
        found = self.run(site)
        return {self.specs[0].name: found} if isinstance(found, Finding) else dict(found)


REGISTRY: list[Measurement] = []


def measures(*specs: Spec) -> Callable[[Callable[[Site], Found]], Callable[[Site], Found]]:
    """Declare what a function measures."""

    def declare(run: Callable[[Site], Found]) -> Callable[[Site], Found]:
        REGISTRY.append(Measurement(specs, run))
        return run

    return declare


def load(names: Sequence[str] = ()) -> list[Measurement]:
    """Import the modules of these rows, by default all; return what they declare, in the order of `ORDER`."""
    import bench.rows

    asked = {name.partition(".")[0] for name in names}
    found = [module.name for module in pkgutil.iter_modules(bench.rows.__path__)]
    for name in found if not asked <= set(found) else asked or found:
        importlib.import_module(f"bench.rows.{name}")
    return sorted(REGISTRY, key=lambda m: _place(m.specs[0].name))


ORDER = ("client", "pick", "server", "sidecar", "rivals", "edge", "users", "discovery", "startup")


def _place(name: str) -> int:
    module = name.partition(".")[0]
    return ORDER.index(module) if module in ORDER else len(ORDER)


PROMISED = ("row", "ours", "baseline", "ratio", "low", "high", "goal", "moonshot", "met", "command")
"""What every line of docs/benchmarks.json has, in this order."""


def record(spec: Spec, found: Finding | None, *, session: str, skipped: str = "") -> dict[str, Any]:
    """Return the row as all code here has it; `paper` writes what is not in `PROMISED` under one key, "detail"."""
    found_or_empty = found if found is not None else Finding(float("nan"))
    row: dict[str, Any] = {
        "row": spec.name,
        "ours": _short(found.ours) if found else None,
        "baseline": _short(found_or_empty.baseline),
        "ratio": _short(found_or_empty.ratio),
        "low": _short(found_or_empty.low),
        "high": _short(found_or_empty.high),
        "goal": spec.goal,
        "moonshot": spec.moonshot,
        "met": spec.is_met(found) if found else None,
        "command": spec.command,
        "about": spec.ours,
        "against": spec.baseline,
        "better": "lower" if spec.lower else "higher",
        "noise": spec.noise,
        "unit": found.unit if found else None,
        "session": session,
    }
    if skipped:
        row["skipped"] = skipped
    if found:
        row |= {key: _short(value) for key, value in found.facts.items()}
        row |= {"control": _short(found.control)} if found.control is not None else {}
        row |= {"spread": [_short(value) for value in found.spread]} if found.spread else {}
        row |= {"rounds": min(map(len, found.samples.values()))} if found.samples else {}
        row |= {"processes": len(found.parts)} if found.parts else {}
        row |= {"notes": found.notes} if found.notes else {}
        row |= {"void": True} if found.is_void else {}
        row |= {"limit": spec.limit} if spec.limit and row["met"] is False else {}
    return row


def nested(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as it is written."""
    more = {key: value for key, value in row.items() if key not in PROMISED}
    return {key: row[key] for key in PROMISED} | {"detail": more}


def flat(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row that was written as all code here has it."""
    return {**{key: value for key, value in written.items() if key != "detail"}, **written["detail"]}


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
