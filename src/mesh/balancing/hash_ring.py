"""Calls about one thing to one endpoint: consistent hashing, for caches and for whatever is worth keeping together.

A ring (Karger et al.; Envoy's ring_hash, gRFC A42): each endpoint owns points on a circle, a key belongs to the next
point. Where an endpoint comes or goes, only the keys move that it gains or loses. Where it cannot be called, its keys
go to the next on the circle, each to a different one, and return with it.

Not Maglev, whose table is rebuilt as a whole (65,537 places, tens of milliseconds of Python) at each change; not
rendezvous, which asks every endpoint at each pick (but see `subset`). A pick is one hash and one bisection, among the
few points of that part of the circle: a table tells where it begins.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

from mesh.balancing.picker import Candidate

T = TypeVar("T")

POINTS = 160
"""Points of an endpoint (ketama's number). The busiest of ten endpoints has about a fifth more than its share."""
_BITS = 64
_SPACE = 2**_BITS
_PER_DIGEST = 8
# Parts of the circle are cut so that so many points, or up to twice as many, are in one (as powers of two).
_POINTS_OF_PART = 3
# A point carries the number of its owner in its lowest bits: a ring is then one sorted list of numbers, which is built
# six times faster than one of pairs.
_OWNER = 0xFFFF


def place(key: bytes) -> int:
    """Return where a key is on the circle: from [0, 2^64), the same in every process and release."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


class HashRing(Generic[T]):
    """A picker. Constant time, after a change O(n log n) once."""

    __slots__ = ("_candidates", "_parts", "_points", "_ring", "_shift", "_stale")

    def __init__(self) -> None:
        self._candidates: list[Candidate[T]] = []
        self._ring = array("Q")
        """All points in order: packed, because looking far apart into a long list is what takes time."""
        self._parts = array("L")
        """Where in the ring each part of the circle begins."""
        self._shift = _BITS
        """What is left of a place without these lowest bits is the number of its part."""
        self._points: dict[tuple[str, int], list[int]] = {}
        """By a candidate's id and how many points it has: where they are."""
        self._stale = False

    def __repr__(self) -> str:
        return f"HashRing({[c.id for c in self._candidates]!r})"

    def replace(self, candidates: Sequence[Candidate[T]], now: float) -> None:
        """Choose from these from now on. The ring is built at the next pick: connections come in tens at a time."""
        # In an order of their own, so that every client decides alike where two points are one.
        self._candidates = sorted(candidates, key=lambda c: c.id)
        self._stale = True

    def pick(
        self, now: float, draw: float, tried: Collection[Candidate[T]] = (), key: bytes | None = None
    ) -> Candidate[T] | None:
        """Return the owner of the key, or the next on the circle that is not in `tried`. Without a key, any."""
        if self._stale:
            self._build()
        ring = self._ring
        if not ring:
            return None
        where = place(key) if key is not None else int(draw * _SPACE)
        part = where >> self._shift
        at = bisect_left(ring, where, self._parts[part], self._parts[part + 1])
        owner = self._candidates[ring[at if at < len(ring) else 0] & _OWNER]
        if tried and owner in tried:
            further = (self._candidates[point & _OWNER] for point in ring[at:] + ring[:at])
            return next((c for c in further if c not in tried), None)
        return owner

    def _build(self) -> None:
        self._stale = False
        heaviest = max((c.weight for c in self._candidates), default=1)
        before, self._points = self._points, {}
        ring: list[int] = []
        for number, candidate in enumerate(self._candidates):
            known = (candidate.id, max(1, POINTS * candidate.weight // heaviest))
            points = self._points[known] = before.get(known) or _points_of(*known)
            ring += [point | number for point in points]
        ring.sort()
        self._ring = array("Q", ring)
        bits = max(0, len(ring).bit_length() - 1 - _POINTS_OF_PART)
        self._shift = _BITS - bits
        begins = range(0, _SPACE, 1 << self._shift)
        self._parts = array("L", [*(bisect_left(ring, begin) for begin in begins), len(ring)])


def _points_of(name: str, count: int) -> list[int]:
    points: list[int] = []
    for number in range(-(-count // _PER_DIGEST)):
        digest = blake2b(f"{name}/{number}".encode()).digest()
        points += [int.from_bytes(digest[at : at + 8], "big") & ~_OWNER for at in range(0, 8 * _PER_DIGEST, 8)]
    return sorted(points[:count])
