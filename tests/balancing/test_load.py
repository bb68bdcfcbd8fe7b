"""What an endpoint is thought to cost: bad news at once, good news slowly, silence heard, failing fast not rewarded."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.balancing.load import DECAY, DEFAULT_ROUND_TRIP, Ending, Load

seconds = st.floats(1e-6, 100.0)


def measured(took: float, now: float = 0.0) -> Load:
    load = Load()
    load.began(now - took)
    load.ended(now, took, Ending.ANSWERED)
    return load


def test_one_never_asked_costs_nothing_and_one_not_yet_answered_the_default() -> None:
    load = Load()
    assert load.at(0.0) == 0.0
    load.began(0.0)
    assert load.at(0.0) == 2 * DEFAULT_ROUND_TRIP


@given(first=seconds, second=seconds)
def test_a_worse_latency_replaces_the_estimate_at_once(first: float, second: float) -> None:
    load = measured(first)
    load.began(1.0)
    load.ended(1.0 + second, second, Ending.ANSWERED)
    if second >= first:
        assert load.cost == second
    else:
        assert second <= load.cost <= first


def test_a_better_latency_counts_by_the_time_that_has_passed() -> None:
    load = measured(1.0)
    load.began(DECAY)
    load.ended(DECAY, 0.1, Ending.ANSWERED)
    assert load.cost == pytest.approx(1.0 / math.e + 0.1 * (1 - 1 / math.e))


@given(took=st.floats(0.001, 10.0))
def test_time_alone_forgives(took: float) -> None:
    load = measured(took)
    assert load.at(0.0) == took
    assert load.at(DECAY) == pytest.approx(took / math.e)
    assert load.at(1e6) < 1e-9


@given(took=seconds, others=st.integers(0, 50))
def test_a_call_shares_with_those_under_way(took: float, others: int) -> None:
    load = measured(took)
    for _ in range(others):
        load.began(0.0)
    assert load.at(0.0) == pytest.approx(took * (others + 1))


def test_silence_is_a_latency() -> None:
    load = measured(0.001)
    load.began(0.0)
    assert load.at(0.001) < 0.003
    assert load.at(0.5) == pytest.approx(2 * 0.5)
    load.ended(0.5, 0.5, Ending.ANSWERED)
    assert load.at(0.5) == pytest.approx(0.5)


def test_an_answer_breaks_the_silence() -> None:
    load = measured(0.001)
    load.began(0.0)
    load.began(0.0)
    load.ended(0.001, 0.001, Ending.ANSWERED)
    assert load.at(0.0011) < 0.003


def test_a_stream_is_a_call_under_way_but_no_latency_and_no_silence() -> None:
    load = measured(0.001)
    load.began(0.0, timed=False)
    assert load.at(0.0) == pytest.approx(0.002)
    assert load.at(0.1) < 0.002
    load.ended(3600.0, 3600.0, Ending.ANSWERED, timed=False)
    assert (load.cost, load.in_flight) == (0.001, 0)


def test_failing_fast_does_not_make_attractive() -> None:
    load = measured(0.010)
    costs = []
    for _ in range(12):
        load.began(0.0)
        load.ended(0.0, 0.0001, Ending.FAILED)
        costs.append(load.cost)
    assert costs[0] == pytest.approx(0.020)
    assert costs == sorted(costs)
    assert costs[-1] == pytest.approx(1.0), "a row of failures costs a second and no more"


def test_one_that_fails_from_the_start_is_no_bargain_either() -> None:
    load = Load()
    load.began(0.0)
    load.ended(0.0, 0.0, Ending.FAILED)
    assert load.at(0.0) > 0.0


def test_a_slow_failure_counts_as_long_as_it_took() -> None:
    load = measured(0.010)
    load.began(0.0)
    load.ended(5.0, 5.0, Ending.FAILED)
    assert load.cost == 5.0


def test_a_call_cut_short_says_at_least_and_never_at_most() -> None:
    load = measured(0.010)
    load.began(0.0)
    load.ended(0.001, 0.001, Ending.CUT_SHORT)
    assert load.cost == 0.010
    load.began(0.0)
    load.ended(0.5, 0.5, Ending.CUT_SHORT)
    assert load.cost == 0.5
    assert load.in_flight == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 10), st.floats(0, 10), st.sampled_from(Ending), st.booleans()),
        max_size=30,
    )
)
def test_whatever_happens_the_cost_is_a_number_and_calls_are_counted_out(calls) -> None:
    load, now = Load(), 0.0
    for pause, took, ending, timed in calls:
        load.began(now, timed=timed)
        load.ended(now + took, took, ending, timed=timed)
        now += pause  # the next may begin before this one ended: clocks of calls overlap
        assert 0.0 <= load.at(now) < math.inf
    assert load.in_flight == 0
