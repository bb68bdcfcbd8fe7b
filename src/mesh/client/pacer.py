"""When the calls of one method are hedged: one queue and one timer for all of them, and the delay that they wait."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING
from weakref import ref

from mesh.resilience.hedge import Tail
from mesh.timers import Timer, call_later

if TYPE_CHECKING:
    from mesh.client.hedging import HedgedCall
    from mesh.client.method import Method

# Seconds after which a hedge that was not paid for, or had nowhere to go, is asked for again. Soon enough for a call
# that hangs.
_AGAIN = 0.05


class Pacer:
    """Tells calls when their hedge is due. The pool's loop owns it."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._tail = Tail(method.monotonic())
        self._waiting: list[tuple[float, int, ref[HedgedCall]]] = []
        """A heap. Weak: most calls have ended long before they are due, with all they hold."""
        self._count = 0
        self._timer: Timer | None = None
        self._looks_at = inf
        """When the timer fires."""

    def __repr__(self) -> str:
        return f"Pacer({len(self._waiting)} waiting, {self._tail!r})"

    def delay(self, now: float) -> float:
        """Return the seconds without an answer after which another attempt is made."""
        policy = self._method.policy.hedging
        p95 = self._tail.p95(now) if policy.follow_p95 else None
        return policy.delay if p95 is None or p95 > policy.delay else p95

    def watch(self, call: HedgedCall, now: float, *, again: bool = False) -> None:
        """Have the call told when its hedge is due; `again`: after one that was due and not made."""
        call.due = due = now + (max(self.delay(now), _AGAIN) if again else self.delay(now))
        self._count += 1
        heappush(self._waiting, (due, self._count, ref(call)))
        if due < self._looks_at:
            self._arm(due, now)

    def took(self, seconds: float) -> None:
        """Learn how long an attempt took, or had before it was given up."""
        self._tail.took(seconds)

    def _arm(self, due: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = due
        self._timer = call_later(due - now, self._look)

    def _look(self) -> None:
        self._timer, self._looks_at = None, inf
        now, waiting = self._method.monotonic(), self._waiting
        while waiting and waiting[0][0] <= now:
            due, _, found = heappop(waiting)
            call = found()
            # Where another attempt was made since, the call is watched anew.
            if call is not None and call.due == due:
                call.hedge(now)
        # Nearly all have ended long before: the timer is for one that lives.
        while waiting and ((call := waiting[0][2]()) is None or call.due != waiting[0][0]):
            heappop(waiting)
        if waiting and waiting[0][0] < self._looks_at:
            self._arm(waiting[0][0], now)
