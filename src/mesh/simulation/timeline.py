"""Virtual time: things that are to happen, in order. A minute of a thousand clients passes in seconds, and the same
every time.

Nothing is ever taken back: what was planned happens, and whoever is no longer concerned ignores it. That is cheaper
than finding it again, and the way a late answer behaves in the world as well.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

T = TypeVar("T")


class Timeline:
    """A clock that jumps from one event to the next."""

    __slots__ = ("_heap", "_order", "now")

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._heap: list[tuple[float, int, Callable[..., None], object]] = []
        self._order = count()

    def __repr__(self) -> str:
        return f"Timeline({self.now:.3f} s, {len(self._heap)} to come)"

    def at(self, when: float, act: Callable[[T], None], subject: T) -> None:
        """Have `act(subject)` called at that time. Events of one moment happen in the order they were planned in."""
        heappush(self._heap, (when, next(self._order), act, subject))

    def run(self, until: float) -> None:
        """Let everything happen that is planned until then, and what it leads to."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, act, subject = heappop(heap)
            act(subject)
        self.now = max(self.now, until)

    @property
    def is_over(self) -> bool:
        """Whether nothing is to come."""
        return not self._heap
