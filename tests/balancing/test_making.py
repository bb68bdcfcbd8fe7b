"""The picker that a policy asks for."""

from __future__ import annotations

import pytest

from mesh.balancing.hash_ring import HashRing
from mesh.balancing.making import picker_for
from mesh.balancing.two_choices import TwoChoices
from mesh.balancing.weighted import WeightedRoundRobin
from mesh.balancing.zones import NearFirst
from mesh.policy import Balancer, BalancerPolicy


@pytest.mark.parametrize(
    ("policy", "zone", "kind"),
    [
        (BalancerPolicy(), "", type(None)),
        (BalancerPolicy(slow_start=5.0), "", WeightedRoundRobin),
        (BalancerPolicy(Balancer.LEAST_LOADED), "", TwoChoices),
        (BalancerPolicy(Balancer.WEIGHTED), "", WeightedRoundRobin),
        (BalancerPolicy(Balancer.CONSISTENT_HASH), "", HashRing),
        (BalancerPolicy(prefer_zone=True), "a", NearFirst),
    ],
)
def test_each_kind_has_its_picker_and_plain_turns_have_none(
    policy: BalancerPolicy, zone: str, kind: type[object]
) -> None:
    assert type(picker_for(policy, zone=zone)) is kind


def test_a_caller_without_a_zone_has_none_to_prefer() -> None:
    assert picker_for(BalancerPolicy(prefer_zone=True)) is None


@pytest.mark.parametrize("kind", list(Balancer))
def test_every_kind_can_prefer_a_zone(kind: Balancer) -> None:
    assert isinstance(picker_for(BalancerPolicy(kind, prefer_zone=True), zone="a"), NearFirst)
