"""How two things are compared: by CPU time per call, in blocks that alternate, with a control beside them.

A machine that others use too never stands still: one block of calls may cost 30 % more than the next. So each thing
that is measured (an `Arm`) has many short turns, and a round is a turn of the baseline and one of each other arm.
Whatever drifts more slowly than a round falls on all of them alike.

Who ran last has its caches warm, its place on a core, and perhaps a timer that is still to come; who is next pays. So
all arms stand alike: no arm has two turns on end, each comes behind each other one as often, and a turn is three times
the same block: one that only warms up, one right behind it, and one more, whose neighbours are all its own.

Each round gives one ratio: a turn of ours over the baseline's blocks nearest to it, the last of its turn before and the
first of its turn after. The median of these is the figure. Its interval is a bootstrap that draws processes, and rounds
of those: two processes of one program differ by some per cent for all of their life, and many rounds of one tell no
more of that than few. Of the two blocks of the baseline the second over the first is the A/A control, the same thing
behind another and behind itself: far from 1 it says that what others leave outlives the warming up (what outlives a
turn as well it does not see), or that the machine is busy, and the measurement is not to be believed.

CPU time is the kernel's account of a process with all its threads, in nanoseconds, of this or of another process.
"""

from __future__ import annotations

import inspect
import itertools
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROUNDS = 24
"""Rounds of a comparison, each with one turn per arm."""
CONTROL = (0.97, 1.03)
"""Outside of this, the A/A control says that the run is void."""
_RESAMPLES = 2000
_CPUCLOCK_SCHED = 2


def cpu_ns(pid: int | None = None) -> int:
    """Return the CPU time that a process has used, threads included. None is this one. Raises OSError if it is gone."""
    if pid is None:
        return time.process_time_ns()
    # How Linux names the CPU clock of another process: clock_getcpuclockid(3), MAKE_PROCESS_CPUCLOCK.
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)


def memory_mb(pid: int | None = None) -> float:
    """Return the resident memory of a process in megabytes."""
    with open(f"/proc/{pid or 'self'}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


@dataclass(frozen=True)
class Arm:
    """One of the things compared. `run(n)` makes n calls, plain or async; the processes `pids` pay for them."""

    run: Callable[[int], Awaitable[object] | object]
    pids: Sequence[int | None] = (None,)
    wall: bool = False
    """Whether it is the clock on the wall that counts: for what waits for a disk."""

    def spent_ns(self) -> int:
        """Return the time used so far."""
        return time.perf_counter_ns() if self.wall else sum(cpu_ns(pid) for pid in self.pids)


@dataclass
class Samples:
    """CPU per call in µs, by arm, a value per round; the baseline has two."""

    baseline: list[float] = field(default_factory=list)
    """Behind itself, before the others."""
    again: list[float] = field(default_factory=list)
    """Behind another, after the others."""
    others: dict[str, list[float]] = field(default_factory=dict)
    unit: str = "µs CPU"
    parts: list[int] = field(default_factory=list)
    """How many rounds each process had, in order; empty where there was one."""

    def extend(self, more: Samples) -> None:
        """Add the rounds of another process."""
        self.parts = [size for samples in (self, more) for size in samples.parts or [len(samples.baseline)] if size]
        self.baseline += more.baseline
        self.again += more.again
        for name, values in more.others.items():
            self.others.setdefault(name, []).extend(values)

    @property
    def control(self) -> float:
        """The baseline behind another over the baseline behind itself."""
        return statistics.median(b / a for a, b in zip(self.baseline, self.again, strict=True))

    def compared(self, name: str) -> Finding:
        """Return the finding for one arm against the baseline."""
        around = [(a + b) / 2 for a, b in zip(self.baseline, self.again, strict=True)]
        found = compare(self.others[name], around, unit=self.unit, parts=self.parts)
        found.control = self.control
        found.samples = {
            name: _rounded(self.others[name]),
            "baseline": _rounded(self.baseline),
            "baseline again": _rounded(self.again),
        }
        return found

    def rates(self, unit: str) -> Samples:
        """Return how many calls there were in a second, instead of how long each took."""
        others = {name: _per_second(values) for name, values in self.others.items()}
        return Samples(_per_second(self.baseline), _per_second(self.again), others, unit, self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return what `of_json` reads."""
        return {"baseline": self.baseline, "again": self.again, "others": self.others, "parts": self.parts}

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Samples:
        """Return what a child process has told."""
        others = {name: list(values) for name, values in told["others"].items()}
        return cls(list(told["baseline"]), list(told["again"]), others, parts=list(told["parts"]))


@dataclass
class Finding:
    """What a row came to. Without a baseline there is no ratio, and the goal is one for `ours`."""

    ours: float
    baseline: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "µs CPU"
    control: float | None = None
    """The A/A control; None where there is none."""
    spread: tuple[float, float] | None = None
    """Interquartile ranges of ours and of the baseline."""
    notes: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """More figures for the JSON: p50_ms, p99_ms, throughput."""
    samples: dict[str, list[float]] = field(default_factory=dict)
    parts: Sequence[int] = ()
    """How many of the samples each process had; empty where there was one."""

    @property
    def is_void(self) -> bool:
        """Whether its own control says that it is not to be believed."""
        return self.control is not None and not CONTROL[0] <= self.control <= CONTROL[1]


def compare(ours: Sequence[float], baseline: Sequence[float], *, unit: str, parts: Sequence[int] = ()) -> Finding:
    """Compare values that were taken in pairs, round by round; in `parts`, where these are of several processes."""
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)]
    low, high = interval(ratios, parts)
    return Finding(
        statistics.median(ours),
        statistics.median(baseline),
        statistics.median(ratios),
        low,
        high,
        unit,
        spread=(iqr(ours), iqr(baseline)),
        samples={"ours": _rounded(ours), "baseline": _rounded(baseline)},
        parts=parts,
    )


def alone(values: Sequence[float], *, unit: str) -> Finding:
    """Return the finding for something that is compared with nothing but its goal."""
    low, high = interval(values)
    return Finding(
        statistics.median(values), low=low, high=high, unit=unit, spread=None, samples={"ours": _rounded(values)}
    )


def interval(values: Sequence[float], parts: Sequence[int] = (), share: float = 0.95) -> tuple[float, float]:
    """Return the bootstrap interval of the median: where it lies in 95 of 100 resampled runs. The same every time.

    Of several `parts`, as many are drawn as there are, and of each as many values as it has. All of k parts lie on one
    side of the truth once in 2 ** (k - 1) times, so no interval of them holds it more often than else: three parts give
    75 %, six 97 %. Hence six processes, where it is them that differ; of fewer it is an interval of these and no more.
    """
    ends = list(itertools.accumulate(parts or [len(values)], initial=0))
    own = [values[begin:end] for begin, end in itertools.pairwise(ends)]
    draw = random.Random(len(values))
    medians = sorted(
        statistics.median([v for part in draw.choices(own, k=len(own)) for v in draw.choices(part, k=len(part))])
        for _ in range(_RESAMPLES)
    )
    cut = int(_RESAMPLES * (1 - share) / 2)
    return medians[cut], medians[-cut - 1]


def iqr(values: Sequence[float]) -> float:
    """Return the interquartile range."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile of values in any order: 0.5 is the median, 0.99 the p99."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def rounds(baseline: Arm, others: Mapping[str, Arm], *, calls: int, count: int = ROUNDS) -> Samples:
    """Run the arms in turns of three blocks, half of `calls` in each; return CPU per call in µs."""
    samples = Samples(others={name: [] for name in others})
    last = 0.0
    for arm in (*others.values(), baseline):
        _, last = await _turn(arm, calls)
    for turns in itertools.islice(_orders(list(others)), count):
        samples.baseline.append(last)
        for name in turns:
            samples.others[name].append(statistics.fmean(await _turn(others[name], calls)))
        first, last = await _turn(baseline, calls)
        samples.again.append(first)
    return samples


def _orders(others: Sequence[str]) -> Iterator[list[str]]:
    """Yield for each round the order of those that run behind the baseline, over and over.

    One round takes each next arm, one each second, and so on: of a prime number of arms, as all rows have, each comes
    behind each other one as often.
    """
    arms = len(others) + 1
    steps = [step for step in range(1, arms + 1) if math.gcd(step, arms) == 1]
    for step in itertools.cycle(steps):
        yield [others[place * step % arms - 1] for place in range(1, arms)]


async def _turn(arm: Arm, calls: int) -> tuple[float, float]:
    """Return what a call costs right behind the warming up, and what after that."""
    block = max(1, calls // 2)
    await _run(arm, block)
    return await _block(arm, block), await _block(arm, block)


async def _block(arm: Arm, calls: int) -> float:
    before = arm.spent_ns()
    await _run(arm, calls)
    return (arm.spent_ns() - before) / calls / 1000


async def _run(arm: Arm, calls: int) -> None:
    made = arm.run(calls)
    if inspect.isawaitable(made):
        await made


def _per_second(micros: Sequence[float]) -> list[float]:
    return [1e6 / value for value in micros]


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
