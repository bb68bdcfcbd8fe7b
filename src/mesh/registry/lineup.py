"""Instances in the order of their ids, kept so one change at a time: what a View shows, without sorting it anew."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from mesh.instance import Instance, State


class Lineup:
    """Instances, no two of one id. `counts` says how many there are in each state."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._instances: list[Instance] = []
        self.counts: Counter[State] = Counter()

    def __repr__(self) -> str:
        return f"Lineup({self._ids})"

    def put(self, instance: Instance) -> None:
        """Add an instance, or replace the one of its id."""
        at = bisect_left(self._ids, instance.id)
        if self._is_at(at, instance.id):
            self.counts[self._instances[at].state] -= 1
            self._instances[at] = instance
        else:
            self._ids.insert(at, instance.id)
            self._instances.insert(at, instance)
        self.counts[instance.state] += 1

    def drop(self, number: str) -> None:
        """Take the instance of this id out, if it is here."""
        at = bisect_left(self._ids, number)
        if self._is_at(at, number):
            self.counts[self._instances[at].state] -= 1
            del self._ids[at], self._instances[at]

    def shown(self) -> tuple[Instance, ...]:
        """Return all of them, in order."""
        return tuple(self._instances)

    def _is_at(self, at: int, number: str) -> bool:
        return at < len(self._ids) and self._ids[at] == number
