"""Windows of calls and of time, against the plain list of everything that was recorded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.resilience.windows import FAILED, SLOW, Counts, CountWindow, TimeWindow, Window

marks = st.sampled_from([0, 0, FAILED, SLOW, FAILED | SLOW])


def counted(results: list[int]) -> Counts:
    """Count the plain way."""
    failed, slow = sum(r & FAILED for r in results), sum(r >> 1 for r in results)
    return Counts(len(results), failed, slow, sum(r != FAILED for r in results))


def totals(window: Window) -> tuple[int, int, int]:
    return window.calls, window.failed, window.slow


@given(st.integers(1, 12), st.lists(marks, max_size=60), st.integers(1, 15))
def test_a_window_of_calls_knows_the_last_ones(size: int, results: list[int], asked: int) -> None:
    window = CountWindow(size)
    for result in results:
        window.add(result, 0.0)
    assert totals(window) == counted(results[-size:])[:3]
    assert window.recent(asked, 0.0) == counted(results[-min(size, asked) :])


@given(st.lists(st.tuples(st.floats(0, 3), marks), max_size=60), st.floats(0, 12))
def test_a_window_of_time_knows_those_not_older_than_it(results: list[tuple[float, int]], wait: float) -> None:
    window, now, at = TimeWindow(10.0), 1000.0, list[tuple[float, int]]()
    for passed, result in results:
        now += passed
        window.add(result, now)
        at.append((now, result))
    now += wait
    # A tenth is forgotten at a time.
    least = counted([r for when, r in at if when > now - 9.0])
    most = counted([r for when, r in at if when >= now - 10.0 - 1e-6])
    found = window.recent(1, now)
    assert all(low <= value <= high for low, value, high in zip(least, found, most, strict=True))
    assert totals(window) == found[:3]


@pytest.mark.parametrize("now", [0.0, 1e9])
def test_a_window_of_time_forgets_everything_after_its_time(now: float) -> None:
    window = TimeWindow(1.0)
    window.add(FAILED | SLOW, now)
    assert window.recent(1, now + 0.5) == Counts(1, 1, 1, 1)
    assert window.recent(1, now + 1.01) == Counts(0, 0, 0, 0)
