"""Calls stay in the caller's zone, as far as its instances can bear them: near ones are faster, and many clouds charge
for the way between zones.

The rule is that of Envoy's zone-aware routing, with one thing assumed that Envoy is told: that callers are spread
evenly over the zones. Of Z zones, ours then makes 1/Z of the calls; if its instances are a share s of all (by weight,
those with an open breaker left out), they can bear s, so

    kept = min(1, s × Z)

of our calls stay, and the rest goes to all other zones alike. Each instance anywhere then gets the same load, also
when half of a zone is gone; where a zone has nobody left, all its calls leave.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

from mesh.balancing.hash_ring import place
from mesh.balancing.picker import Candidate, Picker

T = TypeVar("T")


def kept(own: float, every: float, zones: int) -> float:
    """Return the share of calls that stays in the zone: `own` of `every` capacity is there, and there are so many
    zones.
    """
    if every <= 0:
        return 1.0
    return min(1.0, own / every * zones)


class NearFirst(Generic[T]):
    """A picker made of two of another kind: one for the caller's zone and one for the rest."""

    __slots__ = ("_far", "_near", "_zone", "kept")

    def __init__(self, zone: str, make: Callable[[], Picker[T]]) -> None:
        self._zone = zone
        self._near = make()
        self._far = make()
        self.kept = 0.0

    def __repr__(self) -> str:
        return f"NearFirst({self._zone}, {self.kept:.0%} of {self._near!r}, the rest of {self._far!r})"

    def replace(self, candidates: Sequence[Candidate[T]], now: float) -> None:
        """Choose from these from now on."""
        near = [c for c in candidates if c.zone == self._zone]
        self._near.replace(near, now)
        self._far.replace([c for c in candidates if c.zone != self._zone], now)
        # Where everybody is ejected, ejection says nothing about where to go.
        whole = [c for c in candidates if not c.ejected] or candidates
        own = sum(c.weight for c in whole if c.zone == self._zone)
        self.kept = kept(own, sum(c.weight for c in whole), len({c.zone for c in candidates} | {self._zone}))

    def pick(
        self, now: float, draw: float, tried: Collection[Candidate[T]] = (), key: bytes | None = None
    ) -> Candidate[T] | None:
        """Return what the picker of one side chooses, or that of the other side if the first has nobody left."""
        # Calls about one thing stay together here, too.
        lot = draw if key is None else (place(key) & 0xFFFFFFFF) / 2**32
        share = self.kept
        if lot < share:
            one, other, draw = self._near, self._far, draw / share if key is None else draw
        else:
            one, other, draw = self._far, self._near, (draw - share) / (1.0 - share) if key is None else draw
        found = one.pick(now, draw, tried, key)
        return found if found is not None else other.pick(now, draw, tried, key)
