"""Fairness, whatever happens to the list."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh.balancing.round_robin import RoundRobin


@given(st.integers(1, 20), st.integers(0, 1000), st.integers(1, 10))
def test_everybody_has_the_same_number_of_turns(size: int, start: int, rounds: int) -> None:
    turns = RoundRobin(range(size), start)
    assert set(Counter(turns.pick() for _ in range(size * rounds)).values()) == {rounds}


def test_nothing_to_pick_from_gives_none() -> None:
    turns: RoundRobin[int] = RoundRobin()
    assert turns.pick() is None
    assert list(turns.turn()) == []


@given(st.lists(st.lists(st.integers(0, 50), unique=True, max_size=8), max_size=20))
def test_only_present_items_are_picked_while_the_list_changes(lists: list[list[int]]) -> None:
    turns: RoundRobin[int] = RoundRobin(start=7)
    for items in lists:
        turns.replace(items)
        picked = turns.pick()
        assert picked in items if items else picked is None


@given(st.integers(1, 10), st.sets(st.integers(0, 9)), st.integers(0, 30))
def test_a_turn_names_each_once_and_the_tried_ones_last(size: int, tried: set[int], start: int) -> None:
    order = list(RoundRobin(range(size), start).turn(tried))
    assert sorted(order) == list(range(size))
    fresh = [item for item in order if item not in tried]
    assert order[: len(fresh)] == fresh
