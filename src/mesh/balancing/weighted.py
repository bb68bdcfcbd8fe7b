"""Each in turn, some more often: weighted round robin.

Earliest deadline first, as Envoy and gRFC A58 do it: each endpoint is due again 1/weight after it was chosen, and the
one that is due first is next. Shares are exact and the turns are mixed (a b a c a, not a a a b c). A pick costs
O(log n); nginx's smooth variant gives the same order and costs O(n).

An endpoint's weight is the product of what the operator gave its instance (`use_weight`), what it reports itself
(`use_reports`, gRFC A58; see `reported`), and its slow start.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heapify, heapreplace
from typing import Generic, TypeVar

from mesh.balancing.picker import Candidate
from mesh.balancing.slow_start import OFF, SlowStart

T = TypeVar("T")

# Weights that move, by reports or by slow start, are looked at so often. A58's default is a second; a slow start of a
# few seconds should not go in steps.
_PERIOD = 0.25
# The golden ratio's fraction: multiples of it, modulo 1, spread evenly however many are taken.
_SPREAD = 0.6180339887498949


class _Turn(Generic[T]):
    """When a candidate is due, in virtual time."""

    __slots__ = ("candidate", "due", "order", "period")

    def __init__(self, candidate: Candidate[T], order: int) -> None:
        self.candidate = candidate
        self.order = order
        self.period = 0.0
        self.due = 0.0


_Due = tuple[float, int, _Turn[T]]
"""When a turn is due, its order among those due at once, and the turn. Tuples of numbers compare twice as fast as
objects that say how they compare, and a pick among many is little but comparing."""


class WeightedRoundRobin(Generic[T]):
    """A picker. O(log n)."""

    __slots__ = (
        "_entered", "_heap", "_moving", "_next_look", "_slow_start", "_start", "_time", "_turns",
        "_use_reports", "_use_weight",
    )  # fmt: skip

    def __init__(
        self, slow_start: SlowStart = OFF, *, use_weight: bool = True, use_reports: bool = False, start: float = 0.0
    ) -> None:
        """`start`, from [0, 1), should be drawn: a thousand clients that begin alike make a wave."""
        self._slow_start = slow_start
        self._use_weight = use_weight
        self._use_reports = use_reports
        self._start = start
        self._turns: dict[Candidate[T], _Turn[T]] = {}
        self._heap: list[_Due[T]] = []
        self._time = 0.0
        """Virtual: the deadline of the last pick."""
        self._entered = 0
        self._moving = False
        self._next_look = 0.0

    def __repr__(self) -> str:
        shares = {c.id: round(1 / t.period, 3) for c, t in self._turns.items()}
        return f"WeightedRoundRobin({shares!r})"

    def replace(self, candidates: Sequence[Candidate[T]], now: float) -> None:
        """Choose from these from now on; those known before keep their turn."""
        before = self._turns
        self._turns = {c: before.get(c) or self._enter(c) for c in candidates}
        self._moving = self._use_reports or any(now - c.since < self._slow_start.window for c in candidates)
        self._weigh(now)

    def pick(
        self, now: float, draw: float, tried: Collection[Candidate[T]] = (), key: bytes | None = None
    ) -> Candidate[T] | None:
        """Return the one that is due first among those not in `tried`, or None. Draw and key are not looked at."""
        if self._moving and now >= self._next_look:
            self._weigh(now)
        heap = self._heap
        if not heap:
            return None
        due, order, turn = heap[0]
        if tried and turn.candidate in tried:
            return self._pick_further(tried)
        self._time = due
        turn.due = due = due + turn.period
        heapreplace(heap, (due, order, turn))
        return turn.candidate

    def _pick_further(self, tried: Collection[Candidate[T]]) -> Candidate[T] | None:
        _, _, turn = min((d for d in self._heap if d[2].candidate not in tried), default=(0.0, 0, None))
        if turn is None:
            return None
        turn.due += turn.period
        self._line_up()
        return turn.candidate

    def _enter(self, candidate: Candidate[T]) -> _Turn[T]:
        self._entered += 1
        return _Turn(candidate, self._entered)

    def _weigh(self, now: float) -> None:
        """Take over the weights as they are now. What is left of a wait shrinks or grows with its period."""
        self._next_look = now + _PERIOD
        reported = self._reported(now)
        rising = False
        for turn in self._turns.values():
            candidate = turn.candidate
            age = now - candidate.since
            rising = rising or age < self._slow_start.window
            weight = self._slow_start.factor(age) * reported.get(candidate, 1.0)
            period = 1.0 / (weight * candidate.weight if self._use_weight else weight)
            if not turn.period:
                turn.due = self._time + period * ((self._start + turn.order * _SPREAD) % 1.0)
            elif turn.period != period:
                turn.due = self._time + (turn.due - self._time) * period / turn.period
            turn.period = period
        self._line_up()
        self._moving = self._use_reports or rising

    def _line_up(self) -> None:
        self._heap = [(turn.due, turn.order, turn) for turn in self._turns.values()]
        heapify(self._heap)

    def _reported(self, now: float) -> dict[Candidate[T], float]:
        """Return what the reports say, 1 being the average, which those are given that report nothing."""
        if not self._use_reports:
            return {}
        known = {t.candidate: w for t in self._turns.values() if (w := t.candidate.reported.at(now)) > 0.0}
        # gRFC A58: with fewer than two known, all are equal.
        if len(known) < 2:
            return {}
        average = sum(known.values()) / len(known)
        return {c: w / average for c, w in known.items()}
