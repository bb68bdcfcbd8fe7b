"""What all balancers have in common: the endpoints they choose from, as `Candidate`, and the port, `Picker`.

A picker only chooses. What it learns from calls is kept on the candidates (`load`, `reported`), by whoever makes the
calls; so a picker can be replaced, or wrapped in another, without forgetting anything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic, Protocol, TypeVar

from mesh.balancing.load import Load
from mesh.balancing.reported import ReportedWeight

T = TypeVar("T")


class Candidate(Generic[T]):
    """An endpoint that may be chosen, and what is known of it for choosing."""

    __slots__ = ("ejected", "id", "item", "load", "reported", "since", "weight", "zone")

    def __init__(self, item: T, id: str, *, weight: int = 1, zone: str = "", since: float = 0.0) -> None:
        """id: its address, by which all clients place it alike. since: monotonic time of its first chance."""
        self.item = item
        self.id = id
        self.weight = weight
        self.zone = zone
        self.since = since
        self.ejected = False
        """Its breaker is not closed. It may be chosen all the same: that is how it is probed."""
        self.load = Load()
        self.reported = ReportedWeight()

    def __repr__(self) -> str:
        return f"Candidate({self.id}, weight {self.weight}, {self.load!r})"


class Picker(Protocol[T]):
    """Chooses an endpoint for an attempt. Not locked: one loop, or one lock, owns it."""

    def replace(self, candidates: Sequence[Candidate[T]], now: float) -> None:
        """Choose from these from now on. Those known before keep their place in whatever order there is."""
        ...

    def pick(
        self, now: float, draw: float, tried: Collection[Candidate[T]] = (), key: bytes | None = None
    ) -> Candidate[T] | None:
        """Return an endpoint that is not in `tried`, or None if there is none.

        draw: from [0, 1), for those that leave something to chance.
        key: what the call is about, for those that keep calls about one thing together.
        """
        ...
