"""Each in turn. The simplest fair choice; what gRPC calls round_robin, with the endpoints already tried left out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobin(Generic[T]):
    """Turns over a list that may be replaced at any time. Not locked: one loop, or one lock, owns it."""

    __slots__ = ("_next", "items")

    def __init__(self, items: Sequence[T] = (), start: int = 0) -> None:
        """`start` should be drawn: a thousand clients that all begin with the first endpoint make a wave."""
        self.items: tuple[T, ...] = tuple(items)
        self._next = start

    def __repr__(self) -> str:
        return f"RoundRobin({list(self.items)!r}, next {self._next})"

    def replace(self, items: Sequence[T]) -> None:
        """Turn over other items from now on, beginning where the turn was."""
        self.items = tuple(items)

    def pick(self) -> T | None:
        """Return the next one, or None if there is none. Constant time."""
        items = self.items
        if not items:
            return None
        at = self._next
        if at >= len(items):
            at %= len(items)
        self._next = at + 1
        return items[at]

    def turn(self, tried: Collection[T] = ()) -> Iterator[T]:
        """Yield every item once in the order of turns, those in `tried` last. The first one taken advances the turn."""
        first = self.pick()
        if first is None:
            return
        items, at = self.items, self._next - 1
        order = items[at:] + items[:at]
        yield from (item for item in order if item not in tried)
        yield from (item for item in order if item in tried)
