"""How many calls a server works on at once: as many as it can without getting slower, found by watching.

A server that takes in more than it can do gets slower for everybody until nobody is answered in time, and stays so when
the load is gone. The limit here follows the gradient of Netflix's Gradient2
(https://github.com/Netflix/concurrency-limits, Gradient2Limit). Over windows of 0.1 s and at least 10 calls:

    slowdown = mean over the calls of (time of the call / reference time of its method)
    gradient = max(0.5, min(1, TOLERANCE / slowdown))
    limit    = 0.8 · limit + 0.2 · (limit · gradient + √limit)         between the policy's lowest and highest

What differs from it:
  - Times are divided by their own method's reference, so that more calls of a slow method do not look like slowness.
  - The reference is the fastest window of the last one to two minutes, not a long average: an average drifts up
    while an overload lasts, and the limit with it. Where all of a minute was spent at the limit, one window is
    measured at the lowest limit (Envoy's adaptive concurrency does the same to find its minRTT); a server that was
    not at its limit is never slowed to be measured.
  - A limit falls from what was in use, not from its own height, and grows while nothing is slow, used or not: one that
    is too high costs a moment of slowness, one that was left low by the last overload costs calls.

  - A call that ran out of time counts with the time it had: were only good answers heard, a server that gives none any
    more would learn nothing. Where half of a window ran out of time, the policy's lowest is too high for this service,
    and does not hold until the limit has grown back to it.

Calls over the limit wait in a queue, a quarter of the limit in number and PATIENCE at the longest, which its caller
counts; then they are refused. Priorities: "sheddable" calls use three quarters of the limit and never wait; "critical"
ones wait in front and push the youngest other out of a full queue. While all are to ask, only these wait: the loop is
busy then, and whoever waits hears of it a whole handler later.

Left out: streams, whose time says nothing of the load. Calls that wait unseen because handlers compute in the event
loop are brought into sight by `mesh.server.gate`.
"""

from __future__ import annotations

import enum
from collections import deque
from math import sqrt
from typing import NamedTuple

TOLERANCE = 2.0
"""Times slower than the reference that are still taken for good. Netflix says 1.5 of an average; ours is a minimum."""
PATIENCE = 0.005
"""Seconds that a call waits in the queue. Enough to even out a burst; in an overload most refusals take as long."""
_WINDOW = 0.1
_SAMPLES = 10
_SMOOTHING = 0.2
_PERIOD = 60.0
_TRY_EVERY = 1.0
_LATE_SHARE = 0.5
_BARELY = 4
"""Calls at once in a server that answers nothing in time: enough to notice when it does."""
_SHEDDABLE_SHARE = 0.75
_QUEUE_SHARE = 0.25
_NEVER = float("inf")


class Priority(enum.IntEnum):
    """Who goes first when not all can. By the call's metadata, "mesh-priority"."""

    SHEDDABLE = 0
    DEFAULT = 1
    CRITICAL = 2


PRIORITIES = {"critical": Priority.CRITICAL, "sheddable": Priority.SHEDDABLE, "": Priority.DEFAULT}


class LimitPolicy(NamedTuple):
    """Calls that a server works on at once: never fewer than `lowest` are let in, unless half of them run out of time,
    and never more than `highest`.
    """

    lowest: int = 100
    highest: int = 1000


class Pace:
    """How fast the calls of one method are: now, and at their best lately."""

    __slots__ = ("_before", "_best", "_fastest_before", "_tried", "count", "fastest", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0
        self.fastest = self._fastest_before = _NEVER
        """The fastest call of this period, and of the one before."""
        self._best = self._before = _NEVER
        self._tried = -_NEVER

    def least(self) -> float:
        """Return half of what the fastest call of late took: with less time a call is begun in vain."""
        fastest = min(self.fastest, self._fastest_before)
        return fastest / 2 if fastest < _NEVER else 0.0

    def needs(self, left: float, now: float) -> float:
        """Return the time without which a call that has so much left is begun in vain.

        For one such call a second it is 0, so that quick calls are found out where only slow ones got in.
        """
        least = self.least()
        if left < least and now - self._tried >= _TRY_EVERY:
            self._tried = now
            return 0.0
        return least

    def slowdown(self) -> float:
        """Return how much slower this window was than the reference, which it may set."""
        mean = self.total / self.count
        self._best = min(self._best, mean)
        reference = min(self._best, self._before)
        return mean / reference if reference > 0 else 1.0

    def begin_window(self) -> None:
        """Forget this window."""
        self.total, self.count = 0.0, 0

    def begin_period(self, *, anew: bool) -> None:
        """Begin a period; `anew` forgets the one before as well, where this window is better evidence."""
        self._before = _NEVER if anew else self._best
        self._best = self.total / self.count if anew and self.count else _NEVER
        self._fastest_before, self.fastest = self.fastest, _NEVER


class Ticket:
    """A call that is not let in at once. It waits, unless it is `gone`: let in meanwhile, refused, or given up."""

    __slots__ = ("gone", "priority")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.gone = False


class Limiter:
    """The calls in work and in the queue. Not locked: one loop owns it."""

    def __init__(self, policy: LimitPolicy, now: float) -> None:
        self._policy = policy
        self.limit = float(policy.highest)
        self.in_work = 0
        self.free_below = 0
        """With fewer calls in work than this, and only then, anybody is let in without a question."""
        self._queues: dict[Priority, deque[Ticket]] = {Priority.CRITICAL: deque(), Priority.DEFAULT: deque()}
        self.waiting = 0
        self._peak = 0
        """The most that were in work in this window, as those saw it that ended in it."""
        self._late = 0
        self._overrun = False
        """Whether even the lowest was too much, and the limit has not grown back to it."""
        self.asks_all = False
        """Whether nobody is let in without a question."""
        self._paces: set[Pace] = set()
        self._window_ends = now + _WINDOW
        self._period_ends = now + _PERIOD
        self._pressed = False
        """Whether the limit was reached in this period, so that its times may all be those of an overload."""
        self._kept = 0.0
        """The limit to go back to after a measurement at the lowest; 0 without one."""
        self._settle()

    def __repr__(self) -> str:
        return f"Limiter({self.in_work} of {self.limit:.0f} in work, {self.waiting} waiting)"

    def begin(self) -> None:
        """Count a call that is let in because `in_work` is less than `free_below`."""
        self.in_work += 1

    def ask(self, priority: Priority) -> tuple[Ticket | None, Ticket | None]:
        """Let a call in, or queue or refuse it. Returns its ticket, None if it is in, and one that it pushed out.

        A ticket that is `gone` is a refusal.
        """
        allowed = self.limit * _SHEDDABLE_SHARE if priority is Priority.SHEDDABLE else self.limit
        if self.in_work < int(allowed) and not self.waiting:
            self.begin()
            return None, None
        self._pressed = True
        ticket, pushed = Ticket(priority), None
        hopeless = priority is Priority.SHEDDABLE or (self.asks_all and priority is Priority.DEFAULT)
        if hopeless or not self._has_room():
            pushed = self._youngest_default() if priority is Priority.CRITICAL else None
            if pushed is None:
                ticket.gone = True
                return ticket, None
            self.give_up(pushed)
        self._queues[priority].append(ticket)
        self.waiting += 1
        self._settle()
        return ticket, pushed

    def give_up(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue. Harmless if it is gone."""
        if not ticket.gone:
            ticket.gone = True
            self._queues[ticket.priority].remove(ticket)
            self.waiting -= 1
            self._settle()

    def end(self, pace: Pace | None, seconds: float, now: float, late: bool = False) -> Ticket | None:
        """Take note of a call that ended, its time if it says something, and return who is let in for it. Ask `next`
        for more of them.

        late: it ran out of time; where it had too little from the start, that says nothing.
        """
        in_work = self.in_work
        if in_work > self._peak:
            self._peak = in_work
        self.in_work = in_work - 1
        if pace is not None and not (late and seconds < pace.least()):
            if late:
                self._late += 1
            elif seconds < pace.fastest:
                pace.fastest = seconds
            if not pace.count:
                self._paces.add(pace)
            pace.total += seconds
            pace.count += 1
            if now >= self._window_ends:
                self._end_window(now)
        return self.next() if self.waiting else None

    def next(self) -> Ticket | None:
        """Let in the first of those who wait, None if nobody waits or no room is left.

        To be asked until then whenever a call has ended: the limit may have grown by more than one.
        """
        if not self.waiting or self.in_work >= int(self.limit):
            return None
        ticket = next(queue[0] for queue in self._queues.values() if queue)
        self.give_up(ticket)
        self.begin()
        return ticket

    def _has_room(self) -> bool:
        return self.waiting < max(int(self.limit * _QUEUE_SHARE), 1)

    def _youngest_default(self) -> Ticket | None:
        queue = self._queues[Priority.DEFAULT]
        return queue[-1] if queue else None

    def ask_all(self, yes: bool) -> None:
        """Have nobody let in without a question, or those again that need none."""
        self.asks_all = yes
        self._settle()

    def _settle(self) -> None:
        self.free_below = 0 if self.waiting or self.asks_all else int(self.limit * _SHEDDABLE_SHARE)

    def _end_window(self, now: float) -> None:
        measured = [pace for pace in self._paces if pace.count]
        samples = sum(pace.count for pace in measured)
        if samples < _SAMPLES:
            return
        if self._kept:
            self._measure(measured, now)
        else:
            slowdown = sum(pace.slowdown() * pace.count for pace in measured) / samples
            self._adapt(slowdown, self._late >= _LATE_SHARE * samples)
            if now >= self._period_ends:
                self._end_period(now)
        for pace in measured:
            pace.begin_window()
        self._late, self._peak = 0, self.in_work
        self._window_ends = now + _WINDOW
        self._settle()

    def _adapt(self, slowdown: float, many_late: bool) -> None:
        policy, limit = self._policy, self.limit
        self._overrun = many_late or (self._overrun and limit < policy.lowest)
        lowest = min(policy.lowest, _BARELY) if self._overrun else policy.lowest
        if slowdown > TOLERANCE:
            limit = min(limit, float(max(self._peak, lowest)))
        gradient = max(0.5, min(1.0, TOLERANCE / slowdown))
        wanted = limit * gradient + sqrt(limit)
        limit = limit * (1 - _SMOOTHING) + wanted * _SMOOTHING
        self.limit = min(max(limit, float(lowest)), float(policy.highest))

    def _end_period(self, now: float) -> None:
        if self._pressed and self.limit > self._policy.lowest:
            self._kept, self.limit = self.limit, float(self._policy.lowest)
            return
        for pace in self._paces:
            pace.begin_period(anew=False)
        self._begin_period(now)

    def _measure(self, measured: list[Pace], now: float) -> None:
        """Take this window for the reference, unless calls of before the measurement were in it."""
        if self._peak > self._policy.lowest:
            return
        for pace in measured:
            pace.begin_period(anew=True)
        self.limit, self._kept = self._kept, 0.0
        self._begin_period(now)

    def _begin_period(self, now: float) -> None:
        self._period_ends, self._pressed = now + _PERIOD, False
