"""The better of two drawn at random, by the cost that `load` estimates: "power of two choices".

Two draws and a comparison come close to asking all (Mitzenmacher), in constant time, and callers that know different
things do not all run to the same endpoint, as they would if each chose the very best. Finagle and Linkerd balance so.

Pairs are dealt a pass at a time, so that each endpoint is in as many as any other, and a pick computes no place in the
list, which among a thousand would cost more than among three. Of few endpoints a pass has every pair, in an order like
that of a shuffled pack, and chance says where it begins. Of many it has each beside the one so many places on, and
chance says how many. Few need the shuffling: where pairs return soon in the same order, the one asked last loses to
the same one each time.

Weights bias the comparison (a cost is divided by them) but are not honoured to the letter: the cost decides. For exact
shares there is `weighted`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import permutations
from typing import Generic, TypeVar
from zlib import crc32

from mesh.balancing.picker import Candidate
from mesh.balancing.slow_start import OFF, SlowStart

T = TypeVar("T")
Pair = tuple[Candidate[T], Candidate[T]]

_FEW = 16
# Pairs of a pass of few at least: dealing costs as much as some picks.
_PASS = 240


class TwoChoices(Generic[T]):
    """A picker. Constant time on average: a pass is laid out at its begin."""

    __slots__ = ("_candidates", "_even", "_pack", "_pairs", "_risen_at", "_slow_start")

    def __init__(self, slow_start: SlowStart = OFF) -> None:
        self._slow_start = slow_start
        self._candidates: tuple[Candidate[T], ...] = ()
        self._pairs: Iterator[Pair[T]] = iter(())
        """What is left of the pass."""
        self._pack: list[tuple[Candidate[T], ...]] = []
        """The pairs of few: those named first, and those named second; empty until they are asked for."""
        self._even = True
        """All weights are equal, slow starts aside."""
        self._risen_at = 0.0
        """No candidate is in its slow start from then on."""

    def __repr__(self) -> str:
        return f"TwoChoices({list(self._candidates)!r})"

    def replace(self, candidates: Sequence[Candidate[T]], now: float) -> None:
        """Choose from these from now on."""
        self._candidates = tuple(candidates)
        self._pairs, self._pack = iter(()), []
        self._even = len({c.weight for c in candidates}) < 2
        self._risen_at = max((c.since for c in candidates), default=0.0) + self._slow_start.window

    def pick(
        self, now: float, draw: float, tried: Collection[Candidate[T]] = (), key: bytes | None = None
    ) -> Candidate[T] | None:
        """Return the better of two that are not in `tried`, or None if there is none. The key is not looked at."""
        if tried:
            pair = _draw([c for c in self._candidates if c not in tried], draw)
        else:
            pair = next(self._pairs, None) or self._deal(draw)
        if pair is None:
            return None
        one, other = pair
        if self._even and now >= self._risen_at:
            return one if one.load.at(now) <= other.load.at(now) else other
        return one if self._cost(one, now) <= self._cost(other, now) else other

    def _deal(self, draw: float) -> Pair[T] | None:
        """Begin a pass, and return its first pair."""
        known, size = self._candidates, len(self._candidates)
        if size < 2:
            return _draw(known, draw)
        if size > _FEW:
            ones = others = known
            at, apart = divmod(int(draw * size * (size - 1)), size - 1)
            on = (at + apart + 1) % size
        else:
            if not self._pack:
                self._pack = [tuple([known[place] for place in places]) for places in _shuffled(size)]
            ones, others = self._pack
            at = on = int(draw * len(ones))
        self._pairs = zip(ones[at:] + ones[:at], others[on:] + others[:on], strict=True)
        return next(self._pairs)

    def _cost(self, candidate: Candidate[T], now: float) -> float:
        return candidate.load.at(now) / (candidate.weight * self._slow_start.factor(now - candidate.since))


def _draw(known: Sequence[Candidate[T]], draw: float) -> Pair[T] | None:
    """Return an ordered pair of two different ones; the only one twice; None where there is none."""
    size = len(known)
    if size < 2:
        return (known[0], known[0]) if known else None
    one, other = divmod(int(draw * size * (size - 1)), size - 1)
    return known[one], known[other + (other >= one)]


@cache
def _shuffled(size: int) -> list[tuple[int, ...]]:
    """Return every ordered pair of so many places, each as often, in an order that is the same for all: the first of
    each pair, and the second of each.
    """
    pairs = list(permutations(range(size), 2))
    pairs *= -(-_PASS // len(pairs))
    shuffled = sorted(range(len(pairs)), key=lambda number: crc32(b"%d of %d" % (number, size)))
    return list(zip(*(pairs[number] for number in shuffled), strict=True))
