"""gRFC A58's weight of an endpoint, from its reports."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.balancing.reported import BLACKOUT, EXPIRATION, ReportedWeight


def reporting(utilization: float, queries: float, errors: float = 0.0) -> ReportedWeight:
    weight = ReportedWeight()
    weight.report(0.0, utilization, queries, errors)
    return weight


@pytest.mark.parametrize(
    ("utilization", "queries", "errors", "expected"),
    [(0.5, 100, 0, 200), (0.2, 100, 0, 500), (0.5, 100, 50, 100), (1.5, 300, 0, 200)],
)
def test_the_formula(utilization: float, queries: float, errors: float, expected: float) -> None:
    assert reporting(utilization, queries, errors).at(BLACKOUT) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_report_without_utilization_or_queries_says_nothing(bad: float) -> None:
    assert reporting(bad, 100).at(BLACKOUT) == 0.0
    assert reporting(0.5, bad).at(BLACKOUT) == 0.0


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_strange_errors_are_no_errors(bad: float) -> None:
    assert reporting(0.5, 100, bad).at(BLACKOUT) == 200


def test_a_fresh_reporter_is_not_believed_yet() -> None:
    assert reporting(0.5, 100).at(BLACKOUT - 0.01) == 0.0


def test_a_silent_one_is_not_believed_any_more_and_begins_anew() -> None:
    weight = reporting(0.5, 100)
    assert weight.at(EXPIRATION - 0.01) == 200
    assert weight.at(EXPIRATION) == 0.0
    weight.report(EXPIRATION + 1, 0.5, 100, 0.0)
    assert weight.at(EXPIRATION + 2) == 0.0
    assert weight.at(EXPIRATION + 1 + BLACKOUT) == 200


def test_later_reports_replace_the_weight_and_the_row_goes_on() -> None:
    weight = reporting(0.5, 100)
    weight.report(5.0, 0.5, 300, 0.0)
    assert weight.at(BLACKOUT) == 600


def test_a_new_connection_begins_anew() -> None:
    weight = reporting(0.5, 100)
    weight.restart()
    assert weight.at(BLACKOUT) == 0.0
    weight.report(20.0, 0.5, 100, 0.0)
    assert weight.at(20.0 + BLACKOUT) == 200


@example([(0.0, 2.3e-308, 4.0, 0.0), (10.0, 0.0, 0.0, 0.0)])
@given(st.lists(st.tuples(st.floats(0, 400), st.floats(), st.floats(), st.floats()), max_size=20))
def test_no_report_makes_a_weight_that_is_no_number(reports) -> None:
    weight, now = ReportedWeight(), 0.0
    for pause, *report in reports:
        now += pause
        weight.report(now, *report)
        assert 0.0 <= weight.at(now) < math.inf
