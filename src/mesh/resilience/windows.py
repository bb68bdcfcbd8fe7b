"""The last results of the calls to one endpoint: so many calls, or so much time (resilience4j's two sliding windows).

A result is a mark: 0, or FAILED, SLOW, or both. Windows only count; what follows from it is the breaker's business.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

FAILED, SLOW = 1, 2

# Slices of a window of time, as resilience4j has one per second: a tenth is forgotten at a time.
_SLICES = 10


class Counts(NamedTuple):
    """How calls went."""

    calls: int
    failed: int
    slow: int
    timed: int
    """Calls that say how fast the endpoint is: all but those that failed quickly."""


class Window(Protocol):
    """What a breaker looks at. Totals are true as of the last `add`."""

    calls: int
    failed: int
    slow: int

    def add(self, mark: int, now: float) -> None:
        """Take a result in; the oldest go."""
        ...

    def recent(self, calls: int, now: float) -> Counts:
        """Return the last so many calls of a window of calls, all of a window of time."""
        ...


class CountWindow:
    """The last `size` calls."""

    __slots__ = ("_at", "_ring", "calls", "failed", "slow")

    def __init__(self, size: int) -> None:
        self._ring = bytearray(size)
        self._at = 0
        """Where the next one goes."""
        self.calls = self.failed = self.slow = 0

    def add(self, mark: int, now: float) -> None:
        """Take a result in; the oldest goes."""
        ring = self._ring
        if not mark and not self.failed and not self.slow and self.calls == len(ring):
            return  # All were good, and one more is: nothing moves, and the ring need not be fetched from memory.
        at = self._at
        if self.calls < len(ring):
            self.calls += 1
        elif gone := ring[at]:
            self.failed -= gone & FAILED
            self.slow -= gone >> 1
        ring[at] = mark
        at += 1
        self._at = at if at < len(ring) else 0
        if mark:
            self.failed += mark & FAILED
            self.slow += mark >> 1

    def recent(self, calls: int, now: float) -> Counts:
        """Return how the last so many went."""
        calls = min(calls, self.calls)
        begin, ring = self._at - calls, self._ring
        part = ring[begin : self._at] if begin >= 0 else ring[begin:] + ring[: self._at]
        both, failed = part.count(FAILED | SLOW), part.count(FAILED)
        return Counts(calls, failed + both, part.count(SLOW) + both, calls - failed)


class TimeWindow:
    """The last `seconds`, to a tenth of them."""

    __slots__ = ("_slice", "_slices", "_slow_failures", "_until", "calls", "failed", "slow")

    def __init__(self, seconds: float) -> None:
        self._slice = seconds / _SLICES
        self._slices = [[0, 0, 0, 0] for _ in range(_SLICES)]
        """How often each mark came, the oldest slice first."""
        self._until = 0.0
        """When the present slice, the last one, ends."""
        self.calls = self.failed = self.slow = self._slow_failures = 0

    def add(self, mark: int, now: float) -> None:
        """Take a result in; what is too old goes."""
        if now >= self._until:
            self._roll(now)
        self._slices[-1][mark] += 1
        self.calls += 1
        self.failed += mark & FAILED
        self.slow += mark >> 1
        self._slow_failures += mark == FAILED | SLOW

    def recent(self, calls: int, now: float) -> Counts:
        """Return how all of them went that are not too old."""
        if now >= self._until:
            self._roll(now)
        return Counts(self.calls, self.failed, self.slow, self.calls - self.failed + self._slow_failures)

    def _roll(self, now: float) -> None:
        passed = int((now - self._until) / self._slice) + 1
        self._until += passed * self._slice
        for _ in range(min(passed, _SLICES)):
            fine, failed, slow, both = self._slices.pop(0)
            self._slices.append([0, 0, 0, 0])
            self.calls -= fine + failed + slow + both
            self.failed -= failed + both
            self.slow -= slow + both
            self._slow_failures -= both
