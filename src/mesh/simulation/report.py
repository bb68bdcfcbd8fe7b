"""What a run adds up to: before the first fault, while there is one, and after the last; second by second for the
plots; and how long it took until all was well again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mesh.simulation.scenario import Scenario
from mesh.simulation.tally import Tally

# Well again: from then on, in every step, so much of the success rate before the first fault.
_WELL = 0.95
_MOST_STEPS = 120


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run. Calls are counted where they began; `sent` and `goodput` where that happened."""

    name: str
    start: float
    end: float
    calls: int
    succeeded: int
    attempts_per_call: float
    load: float
    """Attempts sent, as a share of what the servers can bear."""
    amplification: float
    """Attempts sent in the worst second, as a multiple of the calls that clients make in ordinary times."""
    goodput: float
    """Calls answered in time, per second."""
    p50: float | None
    """Seconds, of the calls that succeeded; None where none did."""
    p99: float | None

    @property
    def success_rate(self) -> float:
        """Share of the calls that were answered in time; 1 where there were none."""
        return self.succeeded / self.calls if self.calls else 1.0


@dataclass(frozen=True, slots=True)
class Series:
    """What happened step by step, each per second."""

    step: float
    calls: tuple[float, ...]
    """Made by the clients."""
    sent: tuple[float, ...]
    """Attempts."""
    goodput: tuple[float, ...]
    """Calls answered in time."""


@dataclass(frozen=True, slots=True)
class Report:
    """All about one run."""

    scenario: Scenario
    phases: tuple[Phase, ...]
    series: Series
    recovered: float | None
    """Seconds from the end of the last fault until all was well for good; None: never."""

    @property
    def trigger(self) -> tuple[float, float] | None:
        """From when to when there was a fault."""
        return _trigger(self.scenario)

    def phase(self, name: str) -> Phase:
        """Return a phase: "before", "during", "after", or "all" where there is no fault."""
        return next(p for p in self.phases if p.name == name)

    def told(self) -> dict[str, Any]:
        """Return it for programs."""
        phases = [asdict(p) | {"success_rate": p.success_rate} for p in self.phases]
        scenario = self.scenario
        return {
            "variant": scenario.name,
            "seed": scenario.seed,
            "capacity": scenario.servers.capacity,
            "offered": scenario.offered,
            "recovered_s": self.recovered,
            "phases": phases,
            "series": asdict(self.series),
        }


def report_of(scenario: Scenario, tally: Tally) -> Report:
    """Add a run up."""
    trigger = _trigger(scenario)
    bounds = [("all", 0.0, scenario.duration)]
    if trigger is not None:
        begin, end = trigger
        bounds = [("before", 0.0, begin), ("during", begin, end), ("after", end, scenario.duration)]
    series = _series(scenario, tally)
    phases = tuple(_phase(scenario, tally, *bound) for bound in bounds)
    recovered = _recovered(tally, phases[0].success_rate, trigger[1], scenario.duration) if trigger else 0.0
    return Report(scenario, phases, series, recovered)


def _trigger(scenario: Scenario) -> tuple[float, float] | None:
    if not scenario.faults:
        return None
    return min(f.at for f in scenario.faults), max(f.until for f in scenario.faults)


def _phase(scenario: Scenario, tally: Tally, name: str, start: float, end: float) -> Phase:
    calls = succeeded = attempts = answered = 0
    took: list[float] = []
    for began, lasted, ok, tries in zip(tally.began, tally.took, tally.ok, tally.attempts, strict=True):
        if start <= began < end:
            calls += 1
            attempts += tries
            if ok:
                succeeded += 1
                took.append(lasted)
        if ok and start <= began + lasted < end:
            answered += 1
    took.sort()
    sent = [at for at in tally.sent if start <= at < end]
    length = end - start
    return Phase(
        name,
        start,
        end,
        calls,
        succeeded,
        attempts_per_call=attempts / calls if calls else 0.0,
        load=len(sent) / length / scenario.servers.capacity,
        amplification=_worst_second(sent, start, end) / scenario.offered,
        goodput=answered / length,
        p50=_quantile(took, 0.50),
        p99=_quantile(took, 0.99),
    )


def _worst_second(sent: Sequence[float], start: float, end: float) -> float:
    """Return the attempts of the busiest whole second; of a phase shorter than that, its rate."""
    whole = int(end - start)
    if not whole:
        return len(sent) / (end - start)
    counts = [0] * (whole + 1)
    for at in sent:
        counts[int(at - start)] += 1
    return max(counts[:whole])


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def _series(scenario: Scenario, tally: Tally) -> Series:
    step = max(1.0, math.ceil(scenario.duration / _MOST_STEPS))
    steps = math.ceil(scenario.duration / step)
    calls, sent, good = [0] * steps, [0] * steps, [0] * steps
    for began, took, ok in zip(tally.began, tally.took, tally.ok, strict=True):
        calls[int(began / step)] += 1
        ended = int((began + took) / step)
        if ok and ended < steps:
            good[ended] += 1
    for at in tally.sent:
        if at < scenario.duration:
            sent[int(at / step)] += 1
    # The last step may be shorter.
    lengths = [min(step, scenario.duration - n * step) for n in range(steps)]
    rates = ([n / length for n, length in zip(counts, lengths, strict=True)] for counts in (calls, sent, good))
    return Series(step, *(tuple(round(r, 3) for r in column) for column in rates))


def _recovered(tally: Tally, ordinary: float, end: float, duration: float) -> float | None:
    """Look back from the end of the run for the last second that was not well."""
    seconds = math.ceil(duration - end)
    calls, well = [0] * seconds, [0] * seconds
    for began, ok in zip(tally.began, tally.ok, strict=True):
        if end <= began < duration:
            calls[int(began - end)] += 1
            well[int(began - end)] += ok
    for second in range(seconds - 1, -1, -1):
        if well[second] < _WELL * ordinary * calls[second]:
            return float(second + 1) if second + 1 < seconds else None
    return 0.0
