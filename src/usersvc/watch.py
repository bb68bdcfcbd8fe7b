"""How watchers learn that something was committed, by this process or by another: one poll for all of them.

A read of the log's head ten times a second costs less than a connection that listens, works alike on both databases,
and has nothing to reconnect. It runs only while somebody waits. A write of this process is told at once.
"""

from __future__ import annotations

import asyncio

from mesh.clock import Clock
from usersvc.store import StoreFailed, StoreUnavailable, UserStore

INTERVAL = 0.1  # seconds: what a change in another process may wait to be seen


class Tail:
    """The end of the log of changes, watched. One event loop owns it.

    `_head` is the last sequence seen; `_waiters` are those who want a later one, and `_poll` runs while there are any.
    """

    def __init__(self, store: UserStore, clock: Clock, interval: float = INTERVAL) -> None:
        self._store = store
        self._clock = clock
        self._interval = interval
        self._head = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._poll: asyncio.Task[None] | None = None
        self._nudged = asyncio.Event()

    def nudge(self) -> None:
        """Look now rather than at the next round: this process has written."""
        if self._waiters:
            self._nudged.set()

    async def passed(self, sequence: int) -> None:
        """Return when there may be a change after this one; raise StoreFailed if the database went away."""
        if self._head > sequence:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        if self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._look(), name="usersvc-tail")
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    async def _look(self) -> None:
        while self._waiters:
            self._nudged.clear()
            try:
                head = await self._store.head()
            except StoreFailed as e:
                self._tell(e)
                return
            except Exception as e:
                self._tell(StoreUnavailable(type(e).__name__))
                raise
            if head != self._head:
                self._head = head
                self._tell(None)
            await self._wait()

    async def _wait(self) -> None:
        pause = asyncio.ensure_future(self._clock.sleep(self._interval))
        nudged = asyncio.ensure_future(self._nudged.wait())
        try:
            await asyncio.wait((pause, nudged), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            nudged.cancel()

    def _tell(self, error: StoreFailed | None) -> None:
        for waiter in self._waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(StoreUnavailable(str(error)))
