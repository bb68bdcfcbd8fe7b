"""A prefix of the store, followed for ever: list, watch from there, list again if history is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from mesh.clock import Clock, Dice
from mesh.errors import Compacted, StoreDenied, StoreError, StoreUnavailable
from mesh.resilience.reconnect import Reconnect
from mesh.store import Entry, Store
from mesh.telemetry.metrics import COMPACTIONS

_log = logging.getLogger("mesh.registry")


Listener = Callable[[Mapping[str, Entry | None], bool], None]


class Mirror:
    """The entries under a prefix, told and not kept. `listener(entries, whole)` gets all of them first and after each
    listing, with `whole`; and then what changed, None for what is there no more. Should it raise, it is told everything
    once more.
    """

    def __init__(self, store: Store, prefix: str, listener: Listener, clock: Clock, dice: Dice) -> None:
        self._store = store
        self._prefix = prefix
        self._listener = listener
        self._clock = clock
        self._dice = dice
        self._complaint = ""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"mesh-mirror {prefix}")

    @property
    def trouble(self) -> str:
        """What the store said last, if it was no answer; empty while all is well."""
        return self._complaint

    async def close(self) -> None:
        """Stop."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        reconnect = Reconnect()
        while True:
            pause = reconnect.failed
            try:
                await self._follow(reconnect)
            except Compacted as e:
                COMPACTIONS.inc()
                _log.info("listing %s again: %s", self._prefix, e, extra={"event.action": "watch-compacted"})
                if not reconnect.failures:
                    reconnect.failed(0.0)
                    continue
            except StoreDenied as e:
                self._complain(e)
                pause = reconnect.refused
            except StoreError as e:
                self._complain(e)
            except Exception:
                _log.exception("the copy of %s stumbled and begins anew", self._prefix)
            await self._clock.sleep(pause(self._dice.random()))

    async def _follow(self, reconnect: Reconnect) -> None:
        listing = await self._store.list(self._prefix)
        self._complaint = ""
        self._listener(listing.entries, True)
        revision = listing.revision
        del listing  # or it would be kept for as long as the watch goes on
        async for changed in self._store.watch(self._prefix, revision):
            reconnect.worked()
            if changed.changes:
                self._listener(changed.changes, False)

    def _complain(self, error: StoreError) -> None:
        """Log each trouble once, however often it is met."""
        if str(error) != self._complaint:
            self._complaint = str(error)
            level = logging.WARNING if isinstance(error, StoreUnavailable) else logging.ERROR
            _log.log(level, "%s", error, extra={"event.action": "registry-unreadable"})
