"""What others found of an endpoint, told to its breaker: an open one takes it over, any other knows better itself."""

from __future__ import annotations

import pytest

from mesh.policy import BreakerPolicy
from mesh.resilience.breaker import Breaker, BreakerState
from mesh.resilience.outcome import Outcome

POLICY = BreakerPolicy(consecutive_failures=1, open_for=10.0)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    permit = breaker.acquire(now)
    assert permit is not None
    permit.record(Outcome.FAILURE, now)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_well_lets_probes_through_at_once() -> None:
    breaker = opened()
    breaker.hint(well=True, now=1.0, draw=0.5)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.acquire(1.0) is not None


def test_ill_is_another_wait() -> None:
    breaker = opened()
    before = breaker.until
    breaker.hint(well=False, now=9.0, draw=0.5)
    assert breaker.state is BreakerState.OPEN
    assert breaker.until > before
    assert breaker.acquire(before) is None


def test_a_wait_may_become_longer_by_others_and_not_shorter() -> None:
    breaker = opened()
    breaker.postpone(100.0)
    breaker.postpone(50.0)
    assert breaker.until == 100.0
    assert breaker.acquire(99.0) is None
    assert breaker.acquire(100.0) is not None


@pytest.mark.parametrize("well", [True, False])
def test_a_closed_one_takes_no_hints(well: bool) -> None:
    breaker = Breaker(POLICY)
    breaker.hint(well=well, now=1.0, draw=0.5)
    breaker.postpone(100.0)
    breaker.allow_probes(1.0)
    assert breaker.state is BreakerState.CLOSED
