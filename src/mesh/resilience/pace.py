"""How long good calls to one endpoint take, by kind of call. Kinds are methods; `peers` says why.

Only the last few times are kept, and nothing is worked out before somebody asks.
"""

from __future__ import annotations

from collections import deque

# Times per kind that the typical one is the median of, and how many there must be: when everybody gets slower together,
# the median has followed after eight calls, of the twenty that it takes to be left alone.
_TIMES, _ENOUGH = 16, 4
# Kinds remembered. Names of methods that are made up must not fill the memory.
_KINDS = 256


class Pace:
    """Times of one endpoint. Not locked: whoever owns the breaker owns it."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def __repr__(self) -> str:
        return f"Pace({ {kind: self.typical(kind) for kind in self._times} })"

    def took(self, seconds: float, kind: str) -> None:
        """Remember a call that succeeded."""
        times = self._times.get(kind)
        if times is None:
            if len(self._times) >= _KINDS:
                self._times.clear()
            times = self._times[kind] = deque(maxlen=_TIMES)
        times.append(seconds)

    def typical(self, kind: str) -> float | None:
        """Return the median; None if there were too few."""
        times = self._times.get(kind)
        return sorted(times)[len(times) // 2] if times is not None and len(times) >= _ENOUGH else None
