"""Pauses between tries at what is tried for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.resilience.reconnect import FIRST, LONGEST, Reconnect

draws = st.floats(0, 1, exclude_max=True)


def test_pauses_double_up_to_the_longest() -> None:
    again = Reconnect()
    assert [again.failed(0.0) for _ in range(6)] == [pause / 2 for pause in (0.05, 0.1, 0.2, 0.4, 0.5, 0.5)]


def test_after_a_success_they_begin_anew() -> None:
    again = Reconnect()
    for _ in range(10):
        again.failed(0.5)
    again.worked()
    assert again.failures == 0
    assert again.failed(0.0) == FIRST / 2


@given(st.lists(draws, min_size=1, max_size=200))
def test_half_of_a_pause_is_chance_and_none_is_longer_than_the_longest(draws: list[float]) -> None:
    again, before = Reconnect(), FIRST
    for draw in draws:
        pause = again.failed(draw)
        assert before / 2 <= pause <= before
        before = min(LONGEST, before * 2)


def test_it_never_gives_up_nor_overflows() -> None:
    again = Reconnect()
    again.failures = 10**6
    assert LONGEST / 2 <= again.failed(0.5) <= LONGEST


def test_whoever_was_refused_waits_ten_times_as_long() -> None:
    failed, refused = Reconnect(), Reconnect()
    assert refused.refused(0.5) == 10 * failed.failed(0.5)
    assert refused.failures == 1
