"""The watchers of a fleet as the driver has them: processes of `bench.watchers`, asked together."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.measure import quantile
from bench.site import Process, Site

Changes = Sequence[tuple[Callable[[], Awaitable[object]], bool]]
"""What happens to the fleet, in turn, and whether the watchers are told of it."""
Account = Callable[[], float]
_PATIENCE = 20.0


@dataclass
class Seen:
    """What watchers saw of some changes, and what it cost them."""

    delays: list[list[float]] = field(default_factory=list)
    """Milliseconds from before the change was written: for each change, those of each watcher."""
    cpu: list[float] = field(default_factory=list)
    """Milliseconds of CPU per change told, of all that was asked about together; a value for each visit."""
    sent: list[float] = field(default_factory=list)
    """Bytes per change told, the same."""
    etcd: list[float] = field(default_factory=list)
    """Milliseconds of CPU per change told, of etcd."""

    def quantile(self, share: float) -> float:
        """Return a quantile over all changes and watchers."""
        return quantile((delay for change in self.delays for delay in change), share)

    def medians(self) -> list[float]:
        """Return the median over the watchers, for each change."""
        return [statistics.median(change) for change in self.delays]

    def lasts(self) -> list[float]:
        """Return when the last watcher knew, for each change."""
        return [max(change) for change in self.delays]

    def last(self) -> float:
        """Return when the last watcher knew, for the median change."""
        return statistics.median(self.lasts())


class Watching:
    """Watchers of one kind. More can be added; `close` ends them."""

    def __init__(self, site: Site, job: Mapping[str, Any]) -> None:
        self._site = site
        self._job = dict(job)
        self._processes: list[Process] = []
        self._received = 0.0
        self.count = 0

    async def add(self, counts: Sequence[int]) -> None:
        """Start a process for each of the counts, with so many watchers; return once they all know the fleet."""
        added = []
        for count in counts:
            job = json.dumps({**self._job, "count": count})
            added.append(self._site.python("-m", "bench.watchers", job, name=f"watchers-{self._job['kind']}"))
        await asyncio.gather(*(asyncio.to_thread(process.line) for process in added))
        self._processes += added
        self.count += sum(counts)

    async def visit(
        self, changes: Changes, pace: float, seen: Seen, *, cost: Account, etcd: Account, sent: Account
    ) -> None:
        """Make changes, one every `pace` seconds, and add what the watchers saw.

        cost, etcd, sent: accounts: milliseconds of what is asked about and of etcd, and bytes.
        """
        begun: list[int] = []
        before = cost(), etcd(), await asyncio.to_thread(sent)
        start = time.monotonic()
        for number, (change, told) in enumerate(changes, 1):
            if told:
                begun.append(time.monotonic_ns())
            await change()
            await asyncio.sleep(max(0.0, start + number * pace - time.monotonic()))
        seen.cpu.append((cost() - before[0]) / len(begun))
        seen.etcd.append((etcd() - before[1]) / len(begun))
        noticed = await self._noticed(len(begun))
        seen.sent.append((await asyncio.to_thread(sent) - before[2]) / len(begun))
        for number, moment in enumerate(begun):
            seen.delays.append([(times[number] - moment) / 1e6 for times in noticed])

    async def forget(self) -> None:
        """Let the watchers forget what they noticed until now."""
        await self._ask()

    def cpu_ms(self) -> float:
        """Return the CPU time that all of them have used."""
        return sum(process.cpu_ns() for process in self._processes) / 1e6

    def received(self) -> float:
        """Return the bytes that they were sent, as far as they were asked."""
        return self._received

    def memory_mb(self) -> float:
        """Return the memory that all of them have."""
        return sum(process.memory_mb() for process in self._processes)

    def __len__(self) -> int:
        return len(self._processes)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            self._site.stop(process)
        self._processes.clear()

    async def _noticed(self, expected: int) -> list[list[int]]:
        """Return each watcher's times, once all have so many."""
        noticed = await self._ask()
        end = time.monotonic() + _PATIENCE
        while any(len(times) < expected for times in noticed):
            if time.monotonic() > end:
                raise RuntimeError(f"of {expected} changes a watcher noticed {min(map(len, noticed))}")
            await asyncio.sleep(0.1)
            noticed = [old + new for old, new in zip(noticed, await self._ask(), strict=True)]
        if any(len(times) > expected for times in noticed):
            raise RuntimeError(f"a watcher was told {max(map(len, noticed))} times of {expected} changes")
        return noticed

    async def _ask(self) -> list[list[int]]:
        answers = await asyncio.gather(*(asyncio.to_thread(process.ask, "what?") for process in self._processes))
        told = [json.loads(answer) for answer in answers]
        self._received += sum(one["bytes"] for one in told)
        return [times for one in told for times in one["noticed"]]
