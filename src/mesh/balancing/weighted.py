"""Each in turn, some more often: weighted round robin.

Earliest deadline first, as Envoy and gRFC A58 do it: each endpoint is due again 1/weight after it was chosen, and the
one that is due first is next. Shares are exact and the turns are mixed (a b a c a, not a a a b c).

Endpoints of one weight wait equally long, so they come round in the same order for ever: a list, and a place in it.
Only the lists are compared. A pick costs O(log of how many weights differ): among a thousand equal endpoints, or with a
canary beside them, as much as among three. With load reports (`use_reports`) every weight is another, and it is O(log
n). Not A58's static strides: they skip endpoints by chance of their weight, a thousand times in a row for one that has
a thousandth of the others'. Not nginx's smooth variant: the same order as here in O(n).

An endpoint's weight is the product of what the operator gave its instance (`use_weight`), what it reports itself
(`use_reports`, gRFC A58; see `reported`), and its slow start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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


class _Round(Generic[T]):
    """Those of one weight, in the order in which they are due, and whose turn it is. Times are virtual."""

    __slots__ = ("_at", "_dues", "_members", "_passed", "period")

    def __init__(self, period: float, waiting: list[tuple[float, int, Candidate[T]]]) -> None:
        """waiting: when each is due, all within one period, and its order among those due at once."""
        waiting.sort()
        self.period = period
        self._members = [candidate for _, _, candidate in waiting]
        self._dues = [due for due, _, _ in waiting]
        self._at = 0
        self._passed = 0.0
        """Whole rounds since the dues were noted."""

    @property
    def next(self) -> Candidate[T]:
        """Whose turn it is."""
        return self._members[self._at]

    @property
    def due(self) -> float:
        """When that is."""
        return self._passed + self._dues[self._at]

    @property
    def last(self) -> float:
        """When the last turn was due."""
        return self._passed + (self._dues[self._at - 1] if self._at else self._dues[-1] - self.period)

    def take(self) -> Candidate[T]:
        """Go on to the next one's turn and return whose it was."""
        at = self._at
        found = self._members[at]
        at += 1
        if at == len(self._members):
            at = 0
            self._passed += self.period
        self._at = at
        return found

    def is_next_one_of_others(self, tried: Collection[Candidate[T]]) -> bool:
        """Have the first that is not in `tried` change places with the one whose turn it is; False if there is none."""
        members, at = self._members, self._at
        for place in (*range(at, len(members)), *range(at)):
            if members[place] not in tried:
                members[at], members[place] = members[place], members[at]
                return True
        return False

    def waiting(self) -> Iterator[tuple[Candidate[T], float]]:
        """Yield each, and when it is due."""
        for place, (candidate, due) in enumerate(zip(self._members, self._dues, strict=True)):
            yield candidate, self._passed + due + (self.period if place < self._at else 0.0)


class WeightedRoundRobin(Generic[T]):
    """A picker. O(log of how many weights differ)."""

    __slots__ = (
        "_entered", "_heap", "_moving", "_next_look", "_orders", "_slow_start", "_start", "_time", "_use_reports",
        "_use_weight",
    )  # fmt: skip

    def __init__(
        self, slow_start: SlowStart = OFF, *, use_weight: bool = True, use_reports: bool = False, start: float = 0.0
    ) -> None:
        """`start`, from [0, 1), should be drawn: a thousand clients that begin alike make a wave."""
        self._slow_start = slow_start
        self._use_weight = use_weight
        self._use_reports = use_reports
        self._start = start
        self._orders: dict[Candidate[T], int] = {}
        """The how-manieth each was to enter."""
        self._heap: list[tuple[float, int, _Round[T]]] = []
        """When each round is due, its number, and the round. While it is the only one, nobody looks when it is due."""
        self._time = 0.0
        """Virtual: when the last pick was due."""
        self._entered = 0
        self._moving = False
        self._next_look = 0.0

    def __repr__(self) -> str:
        periods = {c: turns.period for _, _, turns in self._heap for c, _ in turns.waiting()}
        return f"WeightedRoundRobin({ {c.id: round(1 / periods[c], 3) for c in self._orders}!r})"

    def replace(self, candidates: Sequence[Candidate[T]], now: float) -> None:
        """Choose from these from now on; those known before keep their turn."""
        before = self._orders
        self._orders = {c: before.get(c) or self._enter() for c in candidates}
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
        _, number, turns = heap[0]
        if tried and turns.next in tried:
            return self._pick_further(tried)
        found = turns.take()
        if len(heap) > 1:
            heapreplace(heap, (turns.due, number, turns))
        return found

    def _pick_further(self, tried: Collection[Candidate[T]]) -> Candidate[T] | None:
        """Have another of the same weight take the turn that is due, or of the weight that is due after that."""
        for _, _, turns in sorted(self._heap):
            if turns.is_next_one_of_others(tried):
                found = turns.take()
                self._line_up([turns for _, _, turns in self._heap])
                return found
        return None

    def _enter(self) -> int:
        self._entered += 1
        return self._entered

    def _weigh(self, now: float) -> None:
        """Take over the weights as they are now. What is left of a wait shrinks or grows with its period."""
        self._next_look = now + _PERIOD
        self._time = time = max([self._time, *(turns.last for _, _, turns in self._heap)])
        waits = {c: (due - time) / turns.period for _, _, turns in self._heap for c, due in turns.waiting()}
        reported = self._reported(now)
        rising = False
        rounds: dict[float, list[tuple[float, int, Candidate[T]]]] = {}
        for candidate, order in self._orders.items():
            age = now - candidate.since
            rising = rising or age < self._slow_start.window
            weight = self._slow_start.factor(age) * reported.get(candidate, 1.0)
            period = 1.0 / (weight * candidate.weight if self._use_weight else weight)
            wait = waits.get(candidate)
            if wait is None:
                wait = (self._start + order * _SPREAD) % 1.0
            rounds.setdefault(period, []).append((time + wait * period, order, candidate))
        self._line_up([_Round(period, waiting) for period, waiting in rounds.items()])
        self._moving = self._use_reports or rising

    def _line_up(self, rounds: list[_Round[T]]) -> None:
        self._heap = [(turns.due, number, turns) for number, turns in enumerate(rounds)]
        heapify(self._heap)

    def _reported(self, now: float) -> dict[Candidate[T], float]:
        """Return what the reports say, 1 being the average, which those are given that report nothing."""
        if not self._use_reports:
            return {}
        known = {c: w for c in self._orders if (w := c.reported.at(now)) > 0.0}
        # gRFC A58: with fewer than two known, all are equal.
        if len(known) < 2:
            return {}
        average = sum(known.values()) / len(known)
        return {c: w / average for c, w in known.items()}
