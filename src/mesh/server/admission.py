"""The door of a server: lets calls in as `mesh.resilience.limiter` decides, and has those wait that it queues.

Unary calls of contracts only. Health and reflection always get in, or an overloaded server would be taken for a dead
one; streams do too, because the time they take says nothing of the load.
"""

from __future__ import annotations

import asyncio
from weakref import WeakSet

from mesh.clock import Clock
from mesh.resilience.limiter import PATIENCE, PRIORITIES, Limiter, LimitPolicy, Pace, Ticket
from mesh.server.gate import Gate
from mesh.telemetry import metrics


class Admission:
    """Who is let in. One event loop owns it."""

    def __init__(self, policy: LimitPolicy, clock: Clock) -> None:
        self.limiter = Limiter(policy, clock.monotonic())
        self._gate = Gate(clock, self.limiter.ask_all)
        self._waiting: dict[Ticket, asyncio.Future[bool]] = {}
        _doors.add(self)

    async def enter(self, service: str, priority: str) -> bool:
        """Return whether a call is let in, at once or after a short wait. Each that is has to `leave`."""
        ticket, pushed = self.limiter.ask(PRIORITIES[priority])
        if ticket is None:
            return await self._begin()
        if pushed is not None:
            self._tell(pushed, False)
        if not ticket.gone and await self._wait(ticket):
            return await self._begin()
        self._gate.refused()
        metrics.SERVER_SHED.labels(service, priority or "default").inc()
        return False

    def leave(self, pace: Pace | None, seconds: float, now: float, late: bool = False) -> None:
        """Let go of a call that took so long; its time counts where there is a pace. late: it ran out of time."""
        self._gate.passed(now)
        limiter = self.limiter
        ticket = limiter.end(pace, seconds, now, late)
        while ticket is not None:
            # Whoever was cancelled a moment ago, and does not know it yet, is passed over.
            ticket = limiter.next() if self._tell(ticket, True) else limiter.end(None, 0.0, now)

    async def _begin(self) -> bool:
        if self._gate.is_shut:
            try:
                await self._gate.turn()
            except asyncio.CancelledError:
                self.leave(None, 0.0, 0.0)
                raise
        return True

    async def _wait(self, ticket: Ticket) -> bool:
        loop = asyncio.get_running_loop()
        let_in: asyncio.Future[bool] = loop.create_future()
        self._waiting[ticket] = let_in
        timer = loop.call_later(PATIENCE, self._give_up, ticket)
        try:
            return await let_in
        except asyncio.CancelledError:
            if let_in.done() and not let_in.cancelled() and let_in.result():
                self.leave(None, 0.0, 0.0)
            raise
        finally:
            timer.cancel()
            self.limiter.give_up(ticket)
            del self._waiting[ticket]

    def _give_up(self, ticket: Ticket) -> None:
        self.limiter.give_up(ticket)
        self._tell(ticket, False)

    def _tell(self, ticket: Ticket, let_in: bool) -> bool:
        """Wake who waits; False if he has been told already, or was cancelled."""
        waiting = self._waiting[ticket]
        if waiting.done():
            return False
        waiting.set_result(let_in)
        return True


_doors: WeakSet[Admission] = WeakSet()
metrics.SERVER_LIMIT.set_function(lambda: sum(door.limiter.limit for door in tuple(_doors)))
