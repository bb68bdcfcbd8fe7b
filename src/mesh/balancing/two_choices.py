"""The better of two drawn at random, by the cost that `load` estimates: "power of two choices".

Two draws and a comparison come close to asking all (Mitzenmacher), in constant time, and callers that know different
things do not all run to the same endpoint, as they would if each chose the very best. Finagle and Linkerd balance so.

Weights bias the comparison (a cost is divided by them) but are not honoured to the letter: the cost decides. For exact
shares there is `weighted`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

from mesh.balancing.picker import Candidate
from mesh.balancing.slow_start import OFF, SlowStart

T = TypeVar("T")


class TwoChoices(Generic[T]):
    """A picker. Constant time."""

    __slots__ = ("_candidates", "_even", "_risen_at", "_slow_start")

    def __init__(self, slow_start: SlowStart = OFF) -> None:
        self._slow_start = slow_start
        self._candidates: tuple[Candidate[T], ...] = ()
        self._even = True
        """All weights are equal, slow starts aside."""
        self._risen_at = 0.0
        """No candidate is in its slow start from then on."""

    def __repr__(self) -> str:
        return f"TwoChoices({list(self._candidates)!r})"

    def replace(self, candidates: Sequence[Candidate[T]], now: float) -> None:
        """Choose from these from now on."""
        self._candidates = tuple(candidates)
        self._even = len({c.weight for c in candidates}) < 2
        self._risen_at = max((c.since for c in candidates), default=0.0) + self._slow_start.window

    def pick(
        self, now: float, draw: float, tried: Collection[Candidate[T]] = (), key: bytes | None = None
    ) -> Candidate[T] | None:
        """Return the better of two that are not in `tried`, or None if there is none. The key is not looked at."""
        candidates: Sequence[Candidate[T]] = self._candidates
        if tried:
            candidates = [c for c in candidates if c not in tried]
        size = len(candidates)
        if size < 2:
            return candidates[0] if size else None
        # One draw makes an ordered pair of two different ones.
        first, second = divmod(int(draw * size * (size - 1)), size - 1)
        one, other = candidates[first], candidates[second + (second >= first)]
        if self._even and now >= self._risen_at:
            return one if one.load.at(now) <= other.load.at(now) else other
        return one if self._cost(one, now) <= self._cost(other, now) else other

    def _cost(self, candidate: Candidate[T], now: float) -> float:
        return candidate.load.at(now) / (candidate.weight * self._slow_start.factor(now - candidate.since))
