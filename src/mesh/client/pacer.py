"""When the calls of one method are hedged: one queue and one timer for all of them, and the delay that they wait."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from mesh.resilience.hedge import Tail

if TYPE_CHECKING:
    from mesh.client.hedging import HedgedCall
    from mesh.client.method import Method


class Pacer:
    """Tells calls when their hedge is due. The pool's loop owns it."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._tail = Tail(method.monotonic())
        self._waiting: deque[tuple[float, HedgedCall]] = deque()
        """About in the order of their time: the delay changes slowly."""
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Pacer({len(self._waiting)} waiting, {self._tail!r})"

    def delay(self, now: float) -> float:
        """Return the seconds without an answer after which another attempt is made."""
        policy = self._method.policy.hedging
        p95 = self._tail.p95(now) if policy.follow_p95 else None
        return policy.delay if p95 is None or p95 > policy.delay else p95

    def watch(self, call: HedgedCall, now: float) -> None:
        """Have the call told when its hedge is due."""
        call.due = due = now + self.delay(now)
        self._waiting.append((due, call))
        if self._timer is None:
            self._arm(due - now)

    def took(self, seconds: float) -> None:
        """Learn how long an attempt took, or had before it was given up."""
        self._tail.took(seconds)

    def _arm(self, seconds: float) -> None:
        loop = self._method.pool.loop
        assert loop is not None
        self._timer = loop.call_later(max(seconds, 0.0), self._look)

    def _look(self) -> None:
        self._timer = None
        now, waiting = self._method.monotonic(), self._waiting
        while waiting and waiting[0][0] <= now:
            due, call = waiting.popleft()
            # Another attempt was made since: it is watched anew.
            if call.due == due:
                call.hedge(now)
        while waiting and waiting[0][1].done():
            waiting.popleft()
        if waiting:
            self._arm(waiting[0][0] - now)
