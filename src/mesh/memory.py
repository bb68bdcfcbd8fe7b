"""A store of registrations in this process: for examples, unit tests and trying things out without etcd.

It keeps the same contract as etcd (`tests/contract/store.py`): revisions, leases, history and compaction included. What
a fault would do is done by hand: `away`, `expire`, `compact`. It is not shared between processes and survives nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from mesh.clock import Clock
from mesh.errors import Compacted, LeaseLost, StoreUnavailable
from mesh.store import Changed, Entry, Lease, Listing
from mesh.wallclock import CLOCK

# Revisions remembered for watchers that are behind; they list again if they are further behind than that.
_HISTORY = 1000


class MemoryLease:
    """One lease. See `mesh.store.Lease`."""

    def __init__(self, data: _Data, number: int, ttl: float) -> None:
        self._data = data
        self.id = number
        self.ttl = ttl
        self.ended = asyncio.Event()

    async def lost(self) -> None:
        """Return when the lease has ended without our asking."""
        await self.ended.wait()

    async def revoke(self) -> None:
        """End the lease and delete its keys."""
        self._data.check_here()
        self._data.end_lease(self.id)


class _Data:
    """What the store holds. Every change is one plain call, start to end.

    `history` has each revision's changes after `compacted`; `pulse` is set, and replaced, at every change.
    """

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.entries: dict[str, Entry] = {}
        self.leases: dict[int, MemoryLease] = {}
        self.granted = 0
        self.history: list[Changed] = []
        self.pulse = asyncio.Event()
        self.away = False
        self.expiring: set[asyncio.Task[None]] = set()

    def check_here(self) -> None:
        if self.away:
            raise StoreUnavailable("the store in memory is away")

    def check_lease(self, lease: Lease | None) -> int:
        if lease is None:
            return 0
        if lease.id not in self.leases:
            raise LeaseLost("the lease has expired or was revoked")
        return lease.id

    def put(self, key: str, value: bytes, lease: int) -> int:
        self.commit({key: Entry(key, value, lease, self.revision + 1)})
        return self.revision

    def commit(self, changes: dict[str, Entry | None]) -> None:
        self.revision += 1
        for key, entry in changes.items():
            if entry is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = entry
        self.history.append(Changed(changes, self.revision))
        if len(self.history) > _HISTORY:
            self.compacted = self.history.pop(0).revision
        self.wake()

    def end_lease(self, number: int) -> MemoryLease | None:
        lease = self.leases.pop(number, None)
        gone: dict[str, Entry | None] = {key: None for key, entry in self.entries.items() if entry.lease == number}
        if lease is not None and gone:
            self.commit(gone)
        return lease

    def wake(self) -> None:
        self.pulse.set()
        self.pulse = asyncio.Event()


class MemoryStore:
    """Registrations in memory. `session()` gives another party its own store over the same data."""

    def __init__(self, *, clock: Clock = CLOCK, _data: _Data | None = None) -> None:
        self._clock = clock
        self._data = _data or _Data()
        self._own: list[MemoryLease] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._data.entries)} keys, revision {self._data.revision})"

    def session(self) -> MemoryStore:
        """Return another store over the same data, as a second process would have one."""
        return MemoryStore(clock=self._clock, _data=self._data)

    @property
    def connected(self) -> bool:
        """Whether the store is there."""
        return not self._data.away and not self._closed

    async def get(self, key: str) -> Entry | None:
        """Return the key's entry, or None."""
        self._check()
        return self._data.entries.get(key)

    async def list(self, prefix: str) -> Listing:
        """Return everything under a prefix."""
        self._check()
        entries = {key: e for key, e in sorted(self._data.entries.items()) if key.startswith(prefix)}
        return Listing(entries, self._data.revision)

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        """Set a key and return the revision."""
        self._check()
        return self._data.put(key, value, self._data.check_lease(lease))

    async def put_if_absent(self, key: str, value: bytes, lease: Lease | None = None) -> bool:
        """Set a key only if there is none; return whether it was set."""
        self._check()
        number = self._data.check_lease(lease)
        there = self._data.entries.get(key)
        if there is not None:
            return bool(number) and (there.lease, there.value) == (number, value)
        self._data.put(key, value, number)
        return True

    async def delete(self, key: str) -> bool:
        """Delete a key; return whether there was one."""
        self._check()
        if key not in self._data.entries:
            return False
        self._data.commit({key: None})
        return True

    async def lease(self, ttl: float) -> MemoryLease:
        """Grant a lease that lives until it is revoked, `expire`d, or its TTL after this store was closed."""
        self._check()
        self._data.granted += 1
        lease = MemoryLease(self._data, self._data.granted, ttl)
        self._data.leases[lease.id] = lease
        self._own.append(lease)
        return lease

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Changed]:
        """Tell every change under a prefix after a revision, for ever."""
        yield Changed({}, after)
        while True:
            pulse = self._data.pulse
            if after < self._data.compacted:
                raise Compacted(self._data.compacted)
            if not self._data.away:
                for changed in [c for c in self._data.history if c.revision > after]:
                    after = changed.revision
                    mine = {key: entry for key, entry in changed.changes.items() if key.startswith(prefix)}
                    if mine:
                        yield Changed(mine, after)
            if pulse is self._data.pulse:
                await pulse.wait()

    async def close(self) -> None:
        """Stop. Leases granted here end after their TTL."""
        if self._closed:
            return
        self._closed = True
        for lease in (lease for lease in self._own if lease.id in self._data.leases):
            task = asyncio.create_task(self._expire_later(lease), name="mesh-memory-lease")
            self._data.expiring.add(task)
            task.add_done_callback(self._data.expiring.discard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def away(self, away: bool = True) -> None:
        """Let the store be unreachable, or reachable again."""
        self._data.away = away
        self._data.wake()

    def expire(self, lease: int) -> None:
        """End a lease as etcd would when its holder is gone or an operator revokes it."""
        ended = self._data.end_lease(lease)
        if ended is not None:
            ended.ended.set()

    def compact(self) -> None:
        """Forget all history up to now."""
        self._data.compacted = self._data.revision
        self._data.history.clear()
        self._data.wake()

    async def _expire_later(self, lease: MemoryLease) -> None:
        await self._clock.sleep(lease.ttl)
        self.expire(lease.id)

    def _check(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        self._data.check_here()
