"""A simulated server: so many calls at once, a queue for so many more, and service times by chance.

Left out: the way of the bytes (put it into the service time), and servers that get slower with the calls they hold
(put fewer at once and a longer queue).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from mesh.clock import Dice
from mesh.simulation.door import Door
from mesh.simulation.scenario import Servers
from mesh.simulation.timeline import Timeline

REFUSED = "RESOURCE_EXHAUSTED"
# Seconds until a connection that nobody listens for is refused, a broken one noticed, a busy server's "no" there.
ROUND_TRIP = 0.001


class Attempt(Protocol):
    """What a server sees of an attempt."""

    is_over: bool
    """Its caller no longer waits for it."""

    def answer(self, code: str, *, unsent: bool = False) -> None:
        """Take the answer; a late one is ignored."""
        ...


Answer = tuple[Attempt, str, bool]


class Server:
    """One server. What befalls it is set by `faults` from outside."""

    __slots__ = (
        "_dice", "_door", "_draw", "_model", "_queue", "_running", "_timeline",
        "error_code", "error_rate", "hung", "id", "listening", "slowness",
    )  # fmt: skip

    def __init__(self, id: str, model: Servers, timeline: Timeline, dice: Dice, draw: Callable[[], float]) -> None:
        self.id = id
        self.listening = True
        self.hung = False
        self.slowness = 1.0
        self.error_rate = 0.0
        self.error_code = "UNAVAILABLE"
        self._model = model
        self._timeline = timeline
        self._dice = dice
        self._draw = draw
        self._queue: deque[Attempt] = deque()
        self._running: dict[Attempt, None] = {}
        """An ordered set: the order in which attempts are cut off must not be chance."""
        self._door = self._new_door()

    def __repr__(self) -> str:
        return f"Server({self.id}, {len(self._running)} at work, {len(self._queue)} waiting)"

    def receive(self, attempt: Attempt) -> None:
        """Take an attempt: work on it, have it wait, or say no."""
        if not self.listening:
            self._say(attempt, "UNAVAILABLE", unsent=True)
        elif self.error_rate and self._dice.random() < self.error_rate:
            self._say(attempt, self.error_code)
        elif self._door is not None and not self.hung:
            self._door.enter(attempt)
        else:
            self._take(attempt)

    def start(self) -> None:
        """Listen again, a new process."""
        self.listening = True
        self._door = self._new_door()

    def cut_off(self) -> None:
        """Break every connection: what it holds is lost to its callers, and to it."""
        held = [*self._running, *self._queue]
        self._running.clear()
        self._queue.clear()
        for attempt in held:
            self._leave(attempt, done=False)
            self._say(attempt, "UNAVAILABLE")

    def awake(self) -> None:
        """Go on after a hang with what came meanwhile; what is too much of it is refused."""
        self.hung = False
        while len(self._queue) > self._model.queue + self._model.concurrency:
            attempt = self._queue.pop()
            self._leave(attempt, done=False)
            self._refuse(attempt)
        while self._queue and len(self._running) < self._model.concurrency:
            self._next()

    def _take(self, attempt: Attempt) -> None:
        if len(self._running) < self._model.concurrency and not self.hung:
            self._begin(attempt)
        elif len(self._queue) < self._model.queue or self.hung:
            self._queue.append(attempt)
        else:
            self._leave(attempt, done=False)
            self._refuse(attempt)

    def _refuse(self, attempt: Attempt) -> None:
        self._say(attempt, REFUSED)

    def _leave(self, attempt: Attempt, *, done: bool, late: bool = False) -> None:
        if self._door is not None:
            self._door.leave(attempt, done=done, late=late)

    def _new_door(self) -> Door[Attempt] | None:
        limit = self._model.limit
        return Door(limit, self._timeline, self._take, self._refuse) if limit is not None else None

    def _begin(self, attempt: Attempt) -> None:
        self._running[attempt] = None
        self._timeline.at(self._timeline.now + self._draw() * self.slowness, self._finish, attempt)

    def _finish(self, attempt: Attempt) -> None:
        if attempt not in self._running:
            return  # cut off
        del self._running[attempt]
        if self.hung:
            # Its time passed while nothing ran: it is begun again as soon as anything runs.
            self._queue.appendleft(attempt)
            return
        late = attempt.is_over
        if not late:
            attempt.answer("OK")
        if self._queue:
            self._next()
        self._leave(attempt, done=True, late=late)

    def _next(self) -> None:
        queue = self._queue
        while queue:
            attempt = queue.popleft()
            if self._model.serves_abandoned or not attempt.is_over:
                self._begin(attempt)
                return
            self._leave(attempt, done=False, late=True)

    def _say(self, attempt: Attempt, code: str, *, unsent: bool = False) -> None:
        self._timeline.at(self._timeline.now + ROUND_TRIP, _deliver, (attempt, code, unsent))


def _deliver(answer: Answer) -> None:
    attempt, code, unsent = answer
    attempt.answer(code, unsent=unsent)
