"""The picker that a policy asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.balancing.hash_ring import HashRing
from mesh.balancing.picker import Picker
from mesh.balancing.slow_start import SlowStart
from mesh.balancing.two_choices import TwoChoices
from mesh.balancing.weighted import WeightedRoundRobin
from mesh.balancing.zones import NearFirst
from mesh.policy import Balancer, BalancerPolicy


def picker_for(policy: BalancerPolicy, *, zone: str = "", start: float = 0.0) -> Picker[Any] | None:
    """Return a new picker, or None for plain round robin, which `round_robin` does for less.

    zone: of the caller; "" where it has none, and then there is none to prefer. start: from [0, 1), drawn.
    """
    slow_start = SlowStart(policy.slow_start)
    make: dict[Balancer, Callable[[], Picker[Any]]] = {
        Balancer.ROUND_ROBIN: lambda: WeightedRoundRobin(slow_start, use_weight=False, start=start),
        Balancer.LEAST_LOADED: lambda: TwoChoices(slow_start),
        Balancer.WEIGHTED: lambda: WeightedRoundRobin(slow_start, use_reports=policy.load_reports, start=start),
        Balancer.CONSISTENT_HASH: HashRing,
    }
    if policy.prefer_zone and zone:
        return NearFirst(zone, make[policy.kind])
    if policy.kind is Balancer.ROUND_ROBIN and not policy.slow_start:
        return None
    return make[policy.kind]()
