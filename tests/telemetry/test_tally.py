"""Successes that are counted in plain numbers for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mesh.telemetry.meters import Series, Times
from mesh.telemetry.tally import Tally

BOUNDS = (0.01, 0.1)


class Told:
    """A counter and a histogram, and what is to be done later."""

    def __init__(self) -> None:
        self.counter, self.times = Series(), Times(BOUNDS)
        self.due: list[Callable[[], object]] = []
        counter: Any = self.counter
        times: Any = self.times
        self.tally = Tally((counter,), times, lambda _, do: self.due.append(do))

    def ring(self) -> None:
        due, self.due[:] = list(self.due), []
        for do in due:
            do()

    @property
    def counted(self) -> tuple[float, list[float]]:
        return self.counter._amount, [bucket._amount for bucket in self.times._buckets]


def test_what_succeeds_is_counted_a_moment_later_where_prometheus_would() -> None:
    told = Told()
    for seconds in (0.001, 0.01, 0.05, 3.0):
        told.tally.add(seconds)
    assert told.counted == (0, [0, 0, 0])
    told.ring()
    assert told.counted == (4, [2, 1, 1])
    assert abs(told.times._sum._amount - 3.061) < 1e-9


def test_one_timer_goes_on_while_there_are_calls_and_ends_with_them() -> None:
    told = Told()
    for _ in range(3):
        told.tally.add(0.001)
        assert len(told.due) == 1
        told.ring()
    assert len(told.due) == 1
    told.ring()
    assert told.due == []
    told.tally.add(0.001)
    assert len(told.due) == 1


def test_a_flush_that_fails_is_not_the_last() -> None:
    told = Told()

    def fail() -> None:
        raise RuntimeError

    told.tally._flushed = fail
    told.tally.add(0.001)
    with pytest.raises(RuntimeError):
        told.ring()
    assert len(told.due) == 1


def test_whoever_ends_hands_over_what_is_left_and_nothing_twice() -> None:
    told = Told()
    told.tally.add(0.05)
    told.tally.flush()
    told.ring()
    assert told.counted == (1, [0, 1, 0])
    assert told.due == []
