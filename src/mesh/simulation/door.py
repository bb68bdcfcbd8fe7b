"""The door of a simulated server: lets attempts in as `mesh.resilience.limiter` decides. Read beside
mesh.server.admission, which does it for a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from mesh.resilience.limiter import PATIENCE, Limiter, LimitPolicy, Pace, Priority, Ticket
from mesh.simulation.timeline import Timeline

T = TypeVar("T")


class Door(Generic[T]):
    """Who is let in: `take` gets them, `refuse` the others."""

    __slots__ = ("_limiter", "_pace", "_refuse", "_since", "_take", "_timeline", "_waiting")

    def __init__(
        self, policy: LimitPolicy, timeline: Timeline, take: Callable[[T], None], refuse: Callable[[T], None]
    ) -> None:
        self._limiter = Limiter(policy, timeline.now)
        self._pace = Pace()
        self._timeline = timeline
        self._take = take
        self._refuse = refuse
        self._since: dict[T, float] = {}
        """Who is in, and since when."""
        self._waiting: dict[Ticket, T] = {}

    def __repr__(self) -> str:
        return f"Door({self._limiter!r})"

    def enter(self, who: T) -> None:
        """Let in, have wait, or refuse."""
        limiter = self._limiter
        if limiter.in_work < limiter.free_below:
            limiter.begin()
            self._let_in(who)
            return
        ticket, _ = limiter.ask(Priority.DEFAULT)
        if ticket is None:
            self._let_in(who)
        elif ticket.gone:
            self._refuse(who)
        else:
            self._waiting[ticket] = who
            self._timeline.at(self._timeline.now + PATIENCE, self._give_up, ticket)

    def leave(self, who: T, *, done: bool, late: bool = False) -> None:
        """Let go; the time it took says something of the server if the work was `done`, or `late`: its caller was out
        of time.
        """
        now = self._timeline.now
        since = self._since.pop(who, None)
        if since is None:
            return
        ticket = self._limiter.end(self._pace if done or late else None, now - since, now, late=late)
        while ticket is not None:
            self._let_in(self._waiting.pop(ticket))
            ticket = self._limiter.next()

    def _let_in(self, who: T) -> None:
        self._since[who] = self._timeline.now
        self._take(who)

    def _give_up(self, ticket: Ticket) -> None:
        who = self._waiting.pop(ticket, None)
        if who is not None:
            self._limiter.give_up(ticket)
            self._refuse(who)
