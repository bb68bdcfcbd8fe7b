"""Every machine tells its state."""

from __future__ import annotations

from mesh.balancing.hash_ring import HashRing
from mesh.balancing.round_robin import RoundRobin
from mesh.balancing.two_choices import TwoChoices
from mesh.balancing.weighted import WeightedRoundRobin
from mesh.balancing.zones import NearFirst
from support.candidates import answer, candidates


def test_every_machine_tells_its_state() -> None:
    known = candidates([1, 3], zones=("a",))
    answer(known[0], 0.0, 0.25)
    assert repr(known[0]) == "Candidate(c0, weight 1, Load(250.0 ms, 0 in flight))"
    assert repr(known[0].reported) == "ReportedWeight(0)"
    assert repr(RoundRobin("ab", 1)) == "RoundRobin(['a', 'b'], next 1)"
    assert repr(HashRing()) == "HashRing([])"
    two: TwoChoices[int] = TwoChoices()
    two.replace(known[:1], 1.0)
    assert repr(two) == "TwoChoices([Candidate(c0, weight 1, Load(250.0 ms, 0 in flight))])"
    weighted: WeightedRoundRobin[int] = WeightedRoundRobin()
    weighted.replace(known, 1.0)
    assert repr(weighted) == "WeightedRoundRobin({'c0': 1.0, 'c1': 3.0})"
    near: NearFirst[int] = NearFirst("a", HashRing)
    near.replace(known, 1.0)
    assert repr(near) == "NearFirst(a, 100% of HashRing(['c0', 'c1']), the rest of HashRing([]))"
