"""Envoy's slow start, as a factor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.balancing.slow_start import OFF, SlowStart


@pytest.mark.parametrize(
    ("age", "aggression", "factor"),
    [(0, 1, 0.1), (1, 1, 0.1), (30, 1, 0.5), (60, 1, 1.0), (15, 2, 0.5), (30, 0.5, 0.25), (6, 0.5, 0.1)],
)
def test_the_formula_with_a_window_of_a_minute(age: float, aggression: float, factor: float) -> None:
    assert SlowStart(60.0, aggression).factor(age) == pytest.approx(factor)


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(0.1, 10), st.floats(0.1, 600))
def test_it_only_rises_from_the_floor_to_one(one: float, other: float, aggression: float, window: float) -> None:
    start = SlowStart(window, aggression)
    assert 0.1 <= start.factor(min(one, other)) <= start.factor(max(one, other)) <= 1.0


@given(st.floats(-1e6, 1e6))
def test_off_is_off(age: float) -> None:
    assert OFF.factor(age) == 1.0
