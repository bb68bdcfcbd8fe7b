"""The calls in hand: who is being answered, which deadlines pass, and how all are let go.

One timer serves all deadlines. It is set for the earliest when it is set at all, and most calls end long before, so a
call costs a set entry and a comparison where a timer of its own would cost 4 % of the call (python -m bench server).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mesh.clock import Clock
from mesh.errors import Refusal
from mesh.server.errors import LEAVING, TOO_SLOW
from mesh.timers import Timer, call_later

_NEVER = float("inf")
# A loop's timer may fire so much too early, by its clock's resolution.
_RESOLUTION = 0.001


class Cuttable(Protocol):
    """A call that can be cut short. `deadline` is when it must be, by the clock."""

    deadline: float

    @property
    def service(self) -> str:
        """The service that it is a call of."""
        ...

    @property
    def streams_for(self) -> float:
        """Seconds that the contract lets it send responses, one after the other; 0 where there is one response."""
        ...

    def cut(self, why: Refusal) -> None:
        """Cancel the handler and answer with `why` instead; once it is cut, nothing."""
        ...


class CallsInHand:
    """All calls that a server is answering. Touched in its event loop only.

    `_next` is when the timer fires; no call in `_calls` has an earlier deadline.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: set[Cuttable] = set()
        self._timer: Timer | None = None
        self._next = _NEVER
        self.loop: asyncio.AbstractEventLoop | None = None
        """The one that it is touched in, known from its first call on."""
        self.discard: Callable[[Cuttable], None] = self._calls.discard
        """Let go of a call that has ended."""

    def __len__(self) -> int:
        return len(self._calls)

    def count(self, service: str) -> int:
        """Return how many calls of a service there are; in any thread."""
        return sum(call.service == service for call in tuple(self._calls))

    def add(self, call: Cuttable) -> None:
        """Take a call in hand."""
        self._calls.add(call)
        if call.deadline < self._next:
            self._set_timer(call.deadline)

    def cut(self, streams_over: float | None = None) -> int:
        """Cut all calls, or the streams whose contract lets them run over so many seconds; return how many."""
        chosen = [call for call in self._calls if streams_over is None or call.streams_for > streams_over]
        for call in chosen:
            call.cut(LEAVING)
        return len(chosen)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._next, self.loop = None, _NEVER, None

    def _sweep(self) -> None:
        self.close()
        now = self._clock.monotonic() + _RESOLUTION
        earliest = _NEVER
        for call in self._calls:
            if call.deadline <= now:
                call.cut(TOO_SLOW)
                call.deadline = _NEVER
            else:
                earliest = min(earliest, call.deadline)
        if earliest < _NEVER:
            self._set_timer(earliest)

    def _set_timer(self, when: float) -> None:
        self.close()
        self._next = when
        self.loop = asyncio.get_running_loop()
        self._timer = call_later(when - self._clock.monotonic(), self._sweep)
