"""Weights honoured to the letter, in mixed turns, while everything changes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.balancing.reported import BLACKOUT
from mesh.balancing.slow_start import SlowStart
from mesh.balancing.weighted import WeightedRoundRobin
from support.candidates import candidates, even, pick_often

weights = st.lists(st.integers(1, 100), min_size=1, max_size=12)


@settings(max_examples=60)
@given(weights, st.floats(0, 1, exclude_max=True), st.integers(1, 400))
def test_at_every_moment_nobody_is_two_turns_from_his_share(given_weights: list[int], start: float, times: int) -> None:
    picker: WeightedRoundRobin[int] = WeightedRoundRobin(start=start)
    picker.replace(candidates(given_weights), 0.0)
    counts: Counter[int] = Counter()
    for _ in range(times):
        counts[picker.pick(0.0, 0.0).item] += 1
    for number, weight in enumerate(given_weights):
        share = times * weight / sum(given_weights)
        assert abs(counts[number] - share) <= 1 + len(given_weights) * weight / sum(given_weights)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.floats(0, 1, exclude_max=True), st.integers(1, 200))
def test_whoever_is_picked_is_due_first(given_weights: list[int], start: float, times: int) -> None:
    """Held against gRFC A58's own form of it: a due of each, of which the least is looked for."""
    picker: WeightedRoundRobin[int] = WeightedRoundRobin(start=start)
    picker.replace(candidates(given_weights), 0.0)
    dues = [((start + n * 0.6180339887498949) % 1.0) / weight for n, weight in enumerate(given_weights, 1)]
    for _ in range(times):
        picked = picker.pick(0.0, 0.0).item
        assert dues[picked] == pytest.approx(min(dues))
        dues[picked] += 1 / given_weights[picked]


@given(st.lists(st.sampled_from([1, 3]), min_size=2, max_size=8), st.integers(0, 40), st.data())
def test_a_further_attempt_changes_turns_with_another_of_its_weight(
    given_weights: list[int], before: int, data: st.DataObject
) -> None:
    """Nobody's share moves by more than the two turns that change hands."""
    picker: WeightedRoundRobin[int] = WeightedRoundRobin()
    known = candidates(given_weights)
    picker.replace(known, 0.0)
    counts = pick_often(picker, before)
    tried = data.draw(st.lists(st.sampled_from(known), max_size=len(known) - 1))
    further = picker.pick(0.0, 0.0, tried)
    assert further is not None
    assert further not in tried
    counts[further.item] += 1
    counts += pick_often(picker, 40 * len(known))
    total = sum(counts.values())
    for number, weight in enumerate(given_weights):
        share = total * weight / sum(given_weights)
        assert abs(counts[number] - share) <= 2 + len(given_weights) * weight / sum(given_weights)


def test_one_that_was_tried_has_the_next_turn_of_its_weight() -> None:
    known = even(4)
    picker: WeightedRoundRobin[int] = WeightedRoundRobin()
    picker.replace(known, 0.0)
    order = [picker.pick(0.0, 0.0) for _ in range(4)]
    assert picker.pick(0.0, 0.0, [order[0]]) is order[1]
    assert [picker.pick(0.0, 0.0) for _ in range(3)] == [order[0], order[2], order[3]]


def test_where_all_of_a_weight_were_tried_those_of_another_are_due() -> None:
    known = candidates([1, 3, 3])
    picker: WeightedRoundRobin[int] = WeightedRoundRobin()
    picker.replace(known, 0.0)
    assert {picker.pick(0.0, 0.0, known[1:]).item for _ in range(3)} == {0}
    assert picker.pick(0.0, 0.0, known) is None


def test_turns_are_mixed() -> None:
    picker: WeightedRoundRobin[int] = WeightedRoundRobin()
    picker.replace(candidates([2, 1, 1]), 0.0)
    turns = [picker.pick(0.0, 0.0).item for _ in range(400)]
    assert all(turns[n : n + 3] != [0, 0, 0] for n in range(398))


def test_without_weights_it_is_round_robin() -> None:
    picker: WeightedRoundRobin[int] = WeightedRoundRobin(use_weight=False)
    picker.replace(candidates([1, 50, 1000]), 0.0)
    assert set(pick_often(picker, 300).values()) == {100}


def test_a_changed_weight_holds_from_the_next_turn_on() -> None:
    known = candidates([1, 1000])
    picker: WeightedRoundRobin[int] = WeightedRoundRobin()
    picker.replace(known, 0.0)
    pick_often(picker, 500)
    known[0].weight = 1000
    picker.replace(known, 0.0)
    assert pick_often(picker, 100)[0] >= 49


def test_clients_with_different_starts_begin_differently() -> None:
    firsts = set()
    for start in range(10):
        picker: WeightedRoundRobin[int] = WeightedRoundRobin(start=start / 10)
        picker.replace(even(10), 0.0)
        firsts.add(picker.pick(0.0, 0.0).item)
    assert len(firsts) >= 5


def test_a_newcomer_does_not_get_a_burst() -> None:
    known = even(4)
    picker: WeightedRoundRobin[int] = WeightedRoundRobin()
    picker.replace(known[:3], 0.0)
    pick_often(picker, 3000)
    picker.replace(known, 0.0)
    assert pick_often(picker, 40)[3] in (9, 10, 11)


def test_a_slow_start_rises_to_the_full_share() -> None:
    known = even(3)
    known[2].since = 1000.0
    picker: WeightedRoundRobin[int] = WeightedRoundRobin(SlowStart(60.0))
    shares = []
    picker.replace(known, 1000.0)
    for now in (1000.0, 1015.0, 1030.0, 1045.0, 1060.0):
        pick_often(picker, 100, now=now)
        shares.append(pick_often(picker, 3000, now=now)[2] / 3000)
    expected = [w / (2 + w) for w in (0.1, 0.25, 0.5, 0.75, 1.0)]
    assert all(abs(share - wanted) < 0.01 for share, wanted in zip(shares, expected, strict=True))


def test_reports_decide_after_the_blackout_as_gRFC_A58_says() -> None:
    known = even(2)
    picker: WeightedRoundRobin[int] = WeightedRoundRobin(use_reports=True)
    picker.replace(known, 0.0)
    for candidate, utilization in zip(known, (0.2, 0.8), strict=True):
        candidate.reported.report(1.0, utilization, 100.0, 0.0)
    assert pick_often(picker, 100, now=5.0)[0] == 50
    assert pick_often(picker, 100, now=1.0 + BLACKOUT)[0] in (79, 80, 81)


def test_one_that_reports_nothing_has_the_average() -> None:
    known = even(3)
    picker: WeightedRoundRobin[int] = WeightedRoundRobin(use_reports=True)
    picker.replace(known, 0.0)
    for candidate, queries in zip(known, (100.0, 300.0), strict=False):
        candidate.reported.report(0.0, 0.5, queries, 0.0)
    counts = pick_often(picker, 600, now=20.0)
    assert [round(counts[n] / 100) for n in range(3)] == [1, 3, 2]


def test_a_single_report_changes_nothing() -> None:
    known = even(3)
    picker: WeightedRoundRobin[int] = WeightedRoundRobin(use_reports=True)
    picker.replace(known, 0.0)
    known[0].reported.report(0.0, 0.5, 1000.0, 0.0)
    assert set(pick_often(picker, 300, now=20.0).values()) == {100}


def test_an_operators_weight_multiplies_the_reported_one() -> None:
    known = candidates([1, 10])
    picker: WeightedRoundRobin[int] = WeightedRoundRobin(use_reports=True)
    picker.replace(known, 0.0)
    for candidate in known:
        candidate.reported.report(0.0, 0.5, 100.0, 0.0)
    assert pick_often(picker, 110, now=20.0)[0] == 10, "a canary stays a canary"
