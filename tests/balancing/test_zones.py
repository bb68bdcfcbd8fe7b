"""Calls stay near, and everybody everywhere gets the same load all the same."""

from __future__ import annotations

from collections import Counter
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.balancing.hash_ring import HashRing
from mesh.balancing.two_choices import TwoChoices
from mesh.balancing.weighted import WeightedRoundRobin
from mesh.balancing.zones import NearFirst, kept
from support.candidates import candidates, pick_often


def near_first(known, make=WeightedRoundRobin, zone: str = "a") -> NearFirst[int]:
    picker: NearFirst[int] = NearFirst(zone, make)
    picker.replace(known, 0.0)
    return picker


def of_zones(**sizes: int):
    known = candidates([1] * sum(sizes.values()))
    names = [zone for zone, size in sizes.items() for _ in range(size)]
    for candidate, zone in zip(known, names, strict=True):
        candidate.zone = zone
    return known


def by_zone(known, counts: Counter[int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for candidate in known:
        found[candidate.zone] += counts[candidate.item]
    return found


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_with_callers_everywhere_nobody_is_asked_for_more_than_his_zone_can_bear(sizes: list[int]) -> None:
    """Callers of each zone make the same number of calls; load on a zone is what its own keep and what others send."""
    zones, every = len(sizes), sum(sizes)
    for own in range(zones):
        stays = kept(sizes[own], every, zones) / zones
        comes = fsum(
            (1 - kept(sizes[other], every, zones)) / zones * sizes[own] / (every - sizes[other])
            for other in range(zones)
            if other != own
        )
        fair = sizes[own] / every
        assert stays <= fair + 1e-9 or zones == 1
        assert stays + comes <= 2 * fair + 1e-9


def test_equal_zones_keep_everything() -> None:
    known = of_zones(a=3, b=3, c=3)
    assert by_zone(known, pick_often(near_first(known), 300)) == {"a": 300, "b": 0, "c": 0}


def test_a_zone_that_lost_half_of_its_instances_sends_away_what_it_cannot_bear() -> None:
    known = of_zones(a=1, b=2, c=2)
    counts = by_zone(known, pick_often(near_first(known), 5000))
    assert counts["a"] / 5000 == pytest.approx(3 / 5, abs=0.03)
    assert counts["b"] / counts["c"] == pytest.approx(1, abs=0.1)


def test_a_zone_with_nobody_sends_everything_away() -> None:
    known = of_zones(b=2, c=2)
    assert sum(pick_often(near_first(known), 100).values()) == 100


def test_ejected_ones_bear_nothing() -> None:
    known = of_zones(a=2, b=2)
    picker = near_first(known)
    assert picker.kept == 1.0
    known[0].ejected = True
    picker.replace(known, 1.0)
    assert picker.kept == pytest.approx(2 / 3)
    for candidate in known:
        candidate.ejected = True
    picker.replace(known, 2.0)
    assert picker.kept == 1.0, "with everybody ejected, ejection says nothing"


def test_when_the_near_ones_were_tried_the_far_ones_are_next() -> None:
    known = of_zones(a=2, b=1)
    picker = near_first(known)
    assert picker.pick(0.0, 0.5, known[:2]) is known[2]
    assert picker.pick(0.0, 0.5, known) is None


def test_one_key_stays_with_one_endpoint_though_some_keys_leave_the_zone() -> None:
    known = of_zones(a=1, b=3)
    picker = near_first(known, HashRing)
    keys = [str(n).encode() for n in range(400)]
    first = [picker.pick(0.0, 0.1, (), key) for key in keys]
    assert first == [picker.pick(5.0, 0.9, (), key) for key in keys]
    assert sum(c.zone == "a" for c in first) / 400 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("make", [WeightedRoundRobin, TwoChoices, HashRing])
def test_what_is_sent_away_is_spread_over_all_of_the_rest(make) -> None:
    known = of_zones(a=1, b=4, c=4)
    counts = pick_often(near_first(known, make), 9000)
    far = [counts[c.item] for c in known if c.zone != "a"]
    assert min(far) > 0.6 * max(far)


def test_a_caller_of_an_unknown_zone_goes_everywhere() -> None:
    known = of_zones(a=2, b=2)
    assert set(pick_often(near_first(known, zone="elsewhere"), 400).values()) == {100}
