"""Endpoints to balance over, without a network: for tests of balancers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mesh.balancing.load import Ending
from mesh.balancing.picker import Candidate, Picker


def candidates(weights: Iterable[int], *, zones: Sequence[str] = (), since: float = 0.0) -> list[Candidate[int]]:
    """Make one for each weight, named c0, c1, …"""
    return [
        Candidate(n, f"c{n}", weight=w, zone=zones[n % len(zones)] if zones else "", since=since)
        for n, w in enumerate(weights)
    ]


def even(size: int) -> list[Candidate[int]]:
    """Make so many of weight 1."""
    return candidates([1] * size)


def pick_often(picker: Picker[int], times: int, *, seed: int = 7, now: float = 1000.0, **more: Any) -> Counter[int]:
    """Pick, and count by item."""
    dice = random.Random(seed)
    found = (picker.pick(now, dice.random(), **more) for _ in range(times))
    return Counter(c.item for c in found if c is not None)


def answer(candidate: Candidate[int], now: float, took: float, ending: Ending = Ending.ANSWERED) -> None:
    """Have it answer a call that begins now; `now` of the end is later."""
    candidate.load.began(now)
    candidate.load.ended(now + took, took, ending)
