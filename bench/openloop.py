"""The bench's load generator: calls at fixed times, whatever became of the calls before.

A generator that waits for an answer before it asks again measures a slow server by asking it less (coordinated
omission). Here every call has its time in a schedule that was laid down before, and its latency counts from that time,
so that a call which had to wait for its turn has waited. Two arms share one schedule, call by call in turns.

Run it with `openloop.run(...)`: its event loop rests on select(2), which wakes to the microsecond; that of asyncio's
default rests on epoll_wait(2), which wakes to the millisecond, later than half of the calls take.
"""

from __future__ import annotations

import asyncio
import selectors
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from bench.measure import Finding, compare, quantile

T = TypeVar("T")

TOOL = "bench/openloop.py"
_BLOCK = 100


@dataclass
class Latencies:
    """What became of the calls of one arm: milliseconds from the time they were due, in the order of the schedule."""

    ms: list[float] = field(default_factory=list)
    failed: int = 0
    late_ms: list[float] = field(default_factory=list)
    """How late the generator itself was; part of the figures above."""

    def extend(self, more: Latencies) -> None:
        """Add the calls of another process."""
        self.ms += more.ms
        self.failed += more.failed
        self.late_ms += more.late_ms

    def to_json(self) -> dict[str, Any]:
        """Return what `of_json` reads."""
        return {"ms": self.ms, "failed": self.failed, "late_ms": self.late_ms}

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Latencies:
        """Return what a child process has told."""
        return cls(list(told["ms"]), int(told["failed"]), list(told["late_ms"]))

    def facts(self) -> dict[str, float | int]:
        """Return the usual figures."""
        return {
            "calls": len(self.ms) + self.failed,
            "failed": self.failed,
            "p50_ms": quantile(self.ms, 0.5),
            "p90_ms": quantile(self.ms, 0.9),
            "p99_ms": quantile(self.ms, 0.99),
        }


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop whose timers are exact to the microsecond."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(work)


async def drive(
    arms: Mapping[str, Callable[[], Awaitable[object]]], *, rate: float, seconds: float, warm: int = 200
) -> dict[str, Latencies]:
    """Call each arm in turns at a steady rate (of all arms together) and return the latencies of each."""
    for call in arms.values():
        for _ in range(warm):
            await call()
    found = {name: Latencies() for name in arms}
    # Each arm comes after each other arm as often: one that stands still between its calls is slower to answer.
    first, *others = arms
    turns, tasks = [first, *others, first, *reversed(others)], set[asyncio.Task[None]]()
    begun = time.perf_counter() + 0.01
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        name = turns[number % len(turns)]
        found[name].late_ms.append((time.perf_counter() - due) * 1000)
        task = asyncio.create_task(_one(arms[name], due, found[name]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    return found


async def _one(call: Callable[[], Awaitable[object]], due: float, found: Latencies) -> None:
    try:
        await call()
    except Exception:
        found.failed += 1
    else:
        found.ms.append((time.perf_counter() - due) * 1000)


def medians(ms: Sequence[float], block: int = _BLOCK) -> list[float]:
    """Return the median of each block of calls: the values that are compared in pairs."""
    return [quantile(ms[at : at + block], 0.5) for at in range(0, len(ms) - block + 1, block)] or [quantile(ms, 0.5)]


def compared(ours: Latencies, baseline: Latencies, again: Latencies | None = None, *, processes: int = 1) -> Finding:
    """Return the finding on the median latency, with both tails among the facts; `again` is the A/A control.

    Of several processes each has made as many calls.
    """
    pairs = list(zip(medians(ours.ms), medians(baseline.ms), strict=False))
    ends = [len(pairs) * number // processes for number in range(processes + 1)]
    parts = [end - begin for begin, end in pairwise(ends)] if processes > 1 else []
    found = compare([a for a, _ in pairs], [b for _, b in pairs], unit="ms p50", parts=parts)
    found.facts = {key: value for key, value in ours.facts().items() if key != "p50_ms"}
    found.facts |= {f"baseline_{key}": value for key, value in baseline.facts().items() if key in ("failed", "p99_ms")}
    found.facts |= {"late_ms": quantile(ours.late_ms + baseline.late_ms, 0.5), "tool": TOOL}
    if again is not None:
        found.control = statistics.median(b / a for a, b in zip(medians(baseline.ms), medians(again.ms), strict=False))
    return found
