"""How long good calls to one endpoint take, by kind of call, and from when on one is slow beside the other endpoints.

Kinds are methods: see `peers` for why they are told apart. Only the last few times are kept, and nothing is worked out
before a call has taken a noticeable time.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.resilience.peers import Member, Peers

# Times per kind that the typical one is the median of, and how many there must be: when everybody gets slower together,
# the median has followed after eight calls, of the twenty that it takes to be left alone.
_TIMES, _ENOUGH = 16, 4
# Kinds remembered. Names of methods that are made up must not fill the memory.
_KINDS = 256
# Seconds that a limit holds. Working it out costs a microsecond per endpoint.
_HOLDS = 0.5


class Pace:
    """Times of one endpoint. Not locked: whoever owns the breaker owns it."""

    __slots__ = ("_limits", "_times")

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}
        self._limits: dict[str, tuple[float, float]] = {}

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

    def limit(self, kind: str, factor: float, peers: Peers, one: Member, now: float) -> float:
        """Return the seconds beyond which a call is slow: `factor` times what is typical of the others."""
        until, limit = self._limits.get(kind, (-inf, inf))
        if now >= until:
            typical = peers.typical(one, kind, now)
            limit = inf if typical is None else factor * typical
            if len(self._limits) >= _KINDS:
                self._limits.clear()
            self._limits[kind] = now + _HOLDS, limit
        return limit
