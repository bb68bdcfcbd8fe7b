"""What all balancers promise alike."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.balancing.hash_ring import HashRing
from mesh.balancing.picker import Picker
from mesh.balancing.slow_start import SlowStart
from mesh.balancing.two_choices import TwoChoices
from mesh.balancing.weighted import WeightedRoundRobin
from mesh.balancing.zones import NearFirst
from support.candidates import candidates, even, pick_often

PICKERS = {
    "two choices": TwoChoices,
    "two choices, slow start": lambda: TwoChoices(SlowStart(60)),
    "weighted": WeightedRoundRobin,
    "weighted by reports": lambda: WeightedRoundRobin(SlowStart(60), use_reports=True),
    "ring": HashRing,
    "near first": lambda: NearFirst("a", WeightedRoundRobin),
    "near first on rings": lambda: NearFirst("a", HashRing),
}


@pytest.fixture(params=PICKERS, name="picker")
def _picker(request: pytest.FixtureRequest) -> Picker[int]:
    return PICKERS[request.param]()


def test_nothing_to_choose_from_gives_none(picker: Picker[int]) -> None:
    assert picker.pick(0.0, 0.5) is None
    picker.replace(even(3), 0.0)
    picker.replace([], 0.0)
    assert picker.pick(0.0, 0.5) is None


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(PICKERS)),
    steps=st.lists(st.tuples(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.integers(0, 5)), max_size=8),
    draws=st.randoms(use_true_random=False),
)
def test_only_present_and_untried_ones_are_chosen_while_the_list_changes(kind, steps, draws) -> None:
    picker, known = PICKERS[kind](), candidates(range(1, 11), zones=("a", "b", "c"))
    for now, (present, tried, key) in enumerate(steps):
        picker.replace([known[n] for n in sorted(present)], float(now))
        for _ in range(5):
            chosen = picker.pick(now, draws.random(), [known[n] for n in tried], str(key).encode() if key else None)
            assert (chosen.item in present - tried) if present - tried else chosen is None


@pytest.mark.parametrize("size", [2, 3, 7, 30])
def test_nobody_starves_and_nobody_has_twice_his_share(picker: Picker[int], size: int) -> None:
    known = candidates([1] * size, zones=("a",))
    picker.replace(known, 1000.0)
    counts = pick_often(picker, 600 * size)
    assert set(counts) == set(range(size))
    assert max(counts.values()) < 2 * 600
    assert min(counts.values()) > 600 / 2


@pytest.mark.parametrize("kind", ["weighted", "two choices", "near first"])
def test_those_that_stay_keep_their_place_when_others_come_and_go(kind: str) -> None:
    picker, known = PICKERS[kind](), candidates([1] * 6, zones=("a",))
    picker.replace(known[:5], 0.0)
    counts = pick_often(picker, 1000)
    for number in range(200):
        picker.replace(known[: 5 + number % 2], 0.0)
        counts += pick_often(picker, 5, seed=number)
    share = sum(counts[n] for n in range(5)) / 5
    assert all(0.8 * share < counts[n] < 1.2 * share for n in range(5))
