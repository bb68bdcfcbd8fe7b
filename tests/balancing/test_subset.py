"""Subsets: the right size, stable, everybody's another, and the same load for all."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh.balancing.subset import subset
from mesh.instance import Endpoint, Instance


def fleet(size: int, zones: str = "a") -> list[Instance]:
    return [
        Instance("t.Test", f"i-{n:03}", Endpoint("127.0.0.1", 5000 + n), zone=zones[n % len(zones)])
        for n in range(size)
    ]


@given(st.integers(0, 60), st.integers(0, 70), st.text(max_size=20))
def test_it_has_the_size_that_is_asked_for(size: int, asked: int, client: str) -> None:
    chosen = subset(client, fleet(size), asked)
    assert len(chosen) == (min(asked, size) if asked else size)
    assert len({i.id for i in chosen}) == len(chosen)


@given(st.integers(2, 60), st.integers(1, 59), st.integers(0, 59))
def test_only_the_one_that_left_is_replaced(size: int, asked: int, gone: int) -> None:
    instances = fleet(size)
    gone %= size
    before = {i.id for i in subset("me", instances, asked)}
    after = {i.id for i in subset("me", instances[:gone] + instances[gone + 1 :], asked)}
    left = instances[gone].id
    assert before - after == ({left} & before)
    assert len(after - before) <= 1


def test_the_order_in_which_instances_are_told_does_not_matter() -> None:
    instances = fleet(50)
    assert subset("me", instances, 7) == subset("me", instances[::-1], 7)


def test_five_hundred_clients_are_spread_over_two_hundred_instances() -> None:
    connections = Counter(i.id for n in range(500) for i in subset(f"client-{n}", fleet(200), 20))
    assert connections.total() == 10_000
    assert len(connections) == 200
    # 50 each on average; the spread is that of chance (binomial, sigma 6.7).
    assert min(connections.values()) > 25
    assert max(connections.values()) < 80


def test_three_quarters_are_near_where_the_zone_matters() -> None:
    chosen = subset("me", fleet(90, zones="abc"), 20, zone="a")
    assert Counter(i.zone == "a" for i in chosen) == {True: 15, False: 5}


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["a", "ab", "abc", "b"]))
def test_a_zone_that_is_too_small_or_alone_still_fills_the_subset(size: int, asked: int, zones: str) -> None:
    assert len(subset("me", fleet(size, zones), asked, zone="a")) == min(size, asked)
