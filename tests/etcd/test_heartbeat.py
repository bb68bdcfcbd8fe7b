"""When leases are kept alive and when they are lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.etcd.heartbeat import Heartbeat


def test_a_lease_is_due_every_third_of_its_ttl() -> None:
    beat = Heartbeat()
    beat.grant(1, 9.0, 0.0)
    assert beat.due(2.9) == []
    assert beat.due(3.0) == [1]
    assert beat.due(5.9) == []
    assert beat.due(6.0) == [1]


def test_a_new_stream_sends_at_once() -> None:
    beat = Heartbeat()
    beat.grant(1, 9.0, 0.0)
    beat.reconnect(0.5)
    assert beat.due(0.5) == [1]


def test_the_end_is_counted_from_the_sending_not_from_the_answer() -> None:
    beat = Heartbeat()
    beat.grant(1, 9.0, 0.0)
    beat.due(3.0)
    assert beat.answer(1, 9.0, 5.0)
    assert beat.expire(11.9) == []
    assert beat.expire(12.0) == [1]


def test_an_answer_of_zero_ends_the_lease() -> None:
    beat = Heartbeat()
    beat.grant(1, 9.0, 0.0)
    beat.due(3.0)
    assert not beat.answer(1, 0.0, 3.1)
    assert len(beat) == 0


def test_answers_to_unknown_leases_are_ignored() -> None:
    assert Heartbeat().answer(7, 0.0, 0.0)


@pytest.mark.parametrize(("ttl", "patience"), [(2.0, 1.0), (9.0, 3.0), (10.0, 10 / 3), (60.0, 3.5)])
def test_silence_breaks_the_stream_in_time_for_another_try(ttl: float, patience: float) -> None:
    beat = Heartbeat()
    beat.grant(1, ttl, 0.0)
    beat.due(ttl / 3)
    assert not beat.is_overdue(ttl / 3 + patience - 0.01)
    assert beat.is_overdue(ttl / 3 + patience + 0.01)
    assert ttl / 3 + patience < ttl


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(2.0, 60.0)), max_size=5), st.floats(0.0, 100.0))
def test_nothing_happens_while_it_says_that_it_can_sleep(grants: list[tuple[int, float]], now: float) -> None:
    beat = Heartbeat()
    for lease, ttl in grants:
        beat.grant(lease, ttl, 0.0)
    before = now + beat.next_wake(now) - 1e-6
    if before > now:
        assert beat.due(before) == []
        assert beat.expire(before) == []
        assert not beat.is_overdue(before)
