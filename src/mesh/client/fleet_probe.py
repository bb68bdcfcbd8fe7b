"""One probe for a fleet: where the policy asks for it (`fleet_probe`), a thousand clients that have left an instance
alone do not all try it again. One of them does, and the others go by what it finds.

When the wait of an open breaker is about to end, its client asks the store for the turn: a key per endpoint, under a
lease. Whoever gets it probes as ever, and writes down what came of it, which stays for a quarter of a minute. Everybody
else gives it some seconds and goes by what is written: "well" is followed by probes of one's own, half open, "ill" by
another wait.

It is a hint and no more. If nobody answers in time, the holder dies, or the store is away or forbids it, each client
goes on by itself as if there were nothing of this. Whoever can write to the store's prefix is believed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from mesh.client.roster import Slot
from mesh.clock import Clock, Dice
from mesh.errors import Compacted, StoreError
from mesh.registry.record import probes_prefix
from mesh.resilience.breaker import Breaker, BreakerState
from mesh.store import Lease, Store

_log = logging.getLogger("mesh.client")

PROBING, WELL, ILL = b"probing", b"well", b"ill"

# Seconds before the end of the wait in which the store is asked; its answer takes milliseconds.
_EARLY = 0.5
# The turn of a holder that died is over after this lease (etcd grants no shorter one).
_TTL = 2.0
# Seconds that a result is there to be read, for those whose wait ends later: jitter spreads 30 s by 12.
_REMEMBERED = 15.0

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[Any]]


class FleetProbe:
    """The turns of one channel. Its loop owns it."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        service: str,
        clock: Clock,
        dice: Dice,
        spawn: Spawn,
        *,
        patience: float = 10.0,
        remembered: float = _REMEMBERED,
    ) -> None:
        """prefix: of everything in the store. patience: seconds that one has to find something out."""
        self._store = store
        self._prefix = probes_prefix(prefix, service)
        self._clock = clock
        self._dice = dice
        self._spawn = spawn
        self._patience = patience
        self._remembered = remembered
        self._followed: dict[Slot, asyncio.Task[Any]] = {}
        self._pulse = asyncio.Event()

    def look(self, slots: Iterable[Slot]) -> None:
        """Hear that some breaker has changed."""
        self._pulse.set()
        self._pulse = asyncio.Event()
        for slot in slots:
            if slot.breaker.state is BreakerState.OPEN and slot not in self._followed:
                self._followed[slot] = self._spawn(self._follow(slot))

    def forget(self, slots: Iterable[Slot]) -> None:
        """Ask for no turn where nobody is left to be probed, and give up the one there is."""
        for slot in slots:
            if (follower := self._followed.pop(slot, None)) is not None:
                follower.cancel()

    async def _follow(self, slot: Slot) -> None:
        """Ask for the turn whenever the wait of a breaker is about to end, as long as it is open."""
        breaker = slot.breaker
        try:
            while breaker.state is BreakerState.OPEN:
                left = breaker.until - self._clock.monotonic() - _EARLY
                if left > 0:
                    await self._clock.sleep(left)
                    continue
                until = breaker.until
                await self._take_turn(breaker, self._prefix + slot.name)
                while breaker.state is BreakerState.OPEN and breaker.until == until:
                    await self._pulse.wait()
        except StoreError as e:
            _log.debug("probing %s by ourselves: %s", slot.name, e)
        finally:
            self._followed.pop(slot, None)

    async def _take_turn(self, breaker: Breaker, key: str) -> None:
        """Probe for everybody, or wait for whoever does."""
        if await self._store.get(key) is None:
            lease, found = await self._store.lease(_TTL), False
            try:
                if await self._store.put_if_absent(key, PROBING, lease):
                    found = await self._probe(breaker, key, lease)
                    return
            finally:
                if found:
                    self._spawn(self._remember(lease))
                else:
                    await _revoke(lease)
        await self._heed(breaker, key)

    async def _probe(self, breaker: Breaker, key: str, lease: Lease) -> bool:
        """Wait for a verdict and write it down; False if there is none in time."""
        until = breaker.until
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                # No verdict while it is half open, nor before.
                while not breaker.is_closed and (breaker.state is not BreakerState.OPEN or breaker.until <= until):
                    await self._pulse.wait()
                await self._store.put(key, WELL if breaker.is_closed else ILL, lease)
                return True
        return False

    async def _heed(self, breaker: Breaker, key: str) -> None:
        breaker.postpone(self._clock.monotonic() + self._patience)
        with suppress(TimeoutError, Compacted):
            async with asyncio.timeout(self._patience):
                found = await self._result(key)
                # No result: whoever had the turn gave it up.
                breaker.hint(well=found != ILL, now=self._clock.monotonic(), draw=self._dice.random())

    async def _result(self, key: str) -> bytes | None:
        listing = await self._store.list(key)
        entry = listing.entries.get(key)
        if entry is not None and entry.value == PROBING:
            async for changed in self._store.watch(key, listing.revision):
                if key in changed.changes:
                    entry = changed.changes[key]
                    break
        return entry.value if entry is not None else None

    async def _remember(self, lease: Lease) -> None:
        try:
            await self._clock.sleep(self._remembered)
        finally:
            await _revoke(lease)


async def _revoke(lease: Lease) -> None:
    # Without the store it ends by itself.
    with suppress(StoreError):
        await lease.revoke()
