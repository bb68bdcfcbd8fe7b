"""What an endpoint costs its callers now: a latency estimate that believes bad news at once and good news slowly, and
the calls under way.

The estimate is Finagle's Peak-EWMA: a latency above it replaces it, one below pulls it down by the time that has
passed (exp(-elapsed / decay)), so a stalled endpoint is left after one slow answer and comes back within seconds of
behaving, without being asked meanwhile: time alone pulls it down.

Where we leave Finagle and Linkerd:
  1. An endpoint never measured costs nothing until it has its first call, and Linkerd's default round trip until that
     is answered. So a new one is tried at once, with one call and not with a flood.
  2. While calls are under way and nothing comes back, the silence itself is a latency: a hung endpoint is left after
     milliseconds, not when its first calls time out.
  3. A call that failed or was refused (RESOURCE_EXHAUSTED) counts as twice what the endpoint has cost so far. Failing
     is fast, and the fastest to fail must not win every comparison.
"""

from __future__ import annotations

import enum
from math import exp

DECAY = 10.0
"""Seconds in which an old latency loses 63 % of its say (Finagle and Linkerd)."""
DEFAULT_ROUND_TRIP = 0.030
"""Seconds that a first answer is expected to take (Linkerd)."""
# A failure costs at least so much, or twice nothing would stay nothing; and no more than that, or a row of failures
# would keep an endpoint away for minutes: from a second down to a millisecond it takes 70 s.
_LEAST_PENALTY, _WORST_PENALTY = 0.001, 1.0


class Ending(enum.Enum):
    """How a call ended, as far as the load of its endpoint is concerned."""

    ANSWERED = "answered"
    """Its latency is a measurement."""
    FAILED = "failed"
    """Not answered, or refused for overload: slow, however fast it was."""
    CUT_SHORT = "cut short"
    """The caller hung up: it would have taken at least so long."""


class Load:
    """The load of one endpoint. Not locked: one loop, or one lock, owns it."""

    __slots__ = ("_silent_since", "_stamp", "_waited_for", "cost", "in_flight", "measured")

    def __init__(self) -> None:
        self.cost = 0.0
        """Seconds, as of `_stamp`."""
        self.measured = False
        self.in_flight = 0
        """Calls under way, streams included."""
        self._stamp = 0.0
        self._waited_for = 0
        """Those of them that are expected to be answered soon: no streams."""
        self._silent_since = 0.0
        """With calls waited for, no answer has come since."""

    def __repr__(self) -> str:
        return f"Load({self.cost * 1000:.1f} ms, {self.in_flight} in flight)"

    def began(self, now: float, *, timed: bool = True) -> None:
        """Count a call in. One that is not `timed` (a stream, which lasts as long as its caller wants) has no
        latency.
        """
        self.in_flight += 1
        if timed:
            if not self._waited_for:
                self._silent_since = now
            self._waited_for += 1

    def ended(self, now: float, took: float, ending: Ending, *, timed: bool = True) -> None:
        """Count a call out that took so many seconds."""
        self.in_flight -= 1
        if timed:
            self._waited_for -= 1
            self._silent_since = now
        if ending is Ending.FAILED:
            cost = self._decayed(now)
            took = max(took if timed else 0.0, min(2 * max(cost, _LEAST_PENALTY), _WORST_PENALTY))
        elif not timed or (ending is Ending.CUT_SHORT and took <= self._decayed(now)):
            return
        self._observe(now, took)

    def at(self, now: float) -> float:
        """Return what a further call is expected to cost, in seconds times the calls it would share with."""
        under_way = self.in_flight + 1
        if not self.measured:
            return DEFAULT_ROUND_TRIP * under_way if under_way > 1 else 0.0
        elapsed = now - self._stamp
        cost = self.cost * exp(-elapsed / DECAY) if elapsed > 0.0 else self.cost
        if self._waited_for:
            silence = now - self._silent_since
            if silence > cost:
                cost = silence
        return cost * under_way

    def _decayed(self, now: float) -> float:
        return self.cost * exp(-max(now - self._stamp, 0.0) / DECAY)

    def _observe(self, now: float, took: float) -> None:
        share = exp(-max(now - self._stamp, 0.0) / DECAY)
        self.cost = took if took >= self.cost or not self.measured else self.cost * share + took * (1.0 - share)
        self._stamp, self.measured = max(now, self._stamp), True
