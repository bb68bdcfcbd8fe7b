"""Who begins when, in a server whose handlers compute in the event loop.

gRPC hands calls over one at a time, and a handler that computes for 20 ms holds up the next one for as long. So a
server that is full looks idle from the inside: one call in work, and thousands that wait in gRPC, unseen, until their
time is over. While the gate is shut, a call that has come is counted and waits here; those behind it are taken in
first, which costs little, and then some begin, for some milliseconds' worth. What waits is now in sight of the limit
(`mesh.resilience.limiter`), which refuses what is too much at once instead of after a second.

It shuts where the loop is late and yet few calls end: they are not many, they are long. It is open in a server of
small calls, however busy, and costs nothing there but a timer twenty times a second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from mesh.clock import Clock
from mesh.timers import call_later

_LOOK_EVERY = 0.05
# Handlers that hold the loop for so long on average are worth more than the turns that the gate costs.
_LATE = 0.003
_LONG = 0.001
_SMOOTHING = 0.3
# With nobody new for so long, all that have come are in: taking one in takes some turns of the loop and of a thread.
_QUIET = 0.002
_PATIENCE = 0.010
_SLICE = 0.050
"""Seconds of work begun at once. More is cheaper, and lets those behind wait longer before they are seen."""


class Gate:
    """One event loop owns it. It looks at the loop only while calls come."""

    def __init__(self, clock: Clock, tell: Callable[[bool], None]) -> None:
        """`tell` hears whether it is shut."""
        self._clock = clock
        self._tell = tell
        self.is_shut = False
        self._line: deque[asyncio.Future[None]] = deque()
        self._looking = self._in_round = self._pressed = False
        self._passed = 0
        self._due = self._since = 0.0
        self._lateness = 0.0
        self._came = self._begun = 0
        """Calls since the last look, and those begun with the last round."""
        self._rounds_end, self._cost = 0.0, _SLICE

    def passed(self, now: float) -> None:
        """Count a call that has ended."""
        self._passed += 1
        if not self._looking and now:
            self._looking = True
            self._look_again(now)

    def refused(self) -> None:
        """Hear that one of those who came was refused, so that there may be more behind it."""
        self._came += 1
        self._pressed = True

    async def turn(self) -> None:
        """Wait for one's turn to begin."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._came += 1
        if not self._in_round:
            self._in_round, self._rounds_end = True, 0.0
            asyncio.get_running_loop().call_soon(self._round)
        await turn

    def _round(self) -> None:
        """Take in who has come, then let some begin; the next round follows when those have computed."""
        now, loop = self._clock.monotonic(), asyncio.get_running_loop()
        if self._begun:
            took = (now - self._rounds_end) / self._begun
            self._cost += (took - self._cost) * _SMOOTHING
            self._begun, self._rounds_end = 0, now
        elif not self._line:
            self._in_round = False
            return
        elif not (self._came and self._is_pressed) or now - self._rounds_end >= _PATIENCE:
            self._begin_some(now)
            loop.call_soon(self._round)
            return
        self._came = 0
        # Not by turns of the loop: gRPC's own thread needs the interpreter as well.
        loop.call_later(_QUIET, self._round)

    def _begin_some(self, now: float) -> None:
        while self._line and self._begun < self._room:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                self._begun += 1
        self._rounds_end, self._pressed = now, False

    @property
    def _is_pressed(self) -> bool:
        """Whether more wait than can begin at once, or some were refused since the last round."""
        return self._pressed or len(self._line) > self._room

    @property
    def _room(self) -> int:
        """Calls that may begin at once."""
        return max(int(_SLICE / max(self._cost, 1e-6)), 1)

    def _look_again(self, now: float) -> None:
        self._passed, self._since, self._due = 0, now, now + _LOOK_EVERY
        call_later(_LOOK_EVERY, self._look)

    def _look(self) -> None:
        now = self._clock.monotonic()
        lateness = now - self._due
        self._lateness += (lateness - self._lateness) * _SMOOTHING
        # Shut, it makes the loop less late by itself. Open, the loop has to be late at this moment as well: at the end
        # of a burst few calls end, too.
        late = self._lateness > _LATE / 3 if self.is_shut else min(self._lateness, lateness) > _LATE
        shut = late and now - self._since > _LONG * self._passed
        if shut is not self.is_shut:
            self.is_shut = shut
            self._tell(shut)
        if not self._passed and not self._line and not shut:
            self._looking = False
            return
        self._look_again(now)
