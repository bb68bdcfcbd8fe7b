"""The budget of extra attempts: what it promises over any window, and what it gives to those who call rarely."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy import BudgetPolicy
from mesh.resilience.budget import Budget

POLICY = BudgetPolicy(share=0.2, per_second=2.0, window=10.0)


def greedy(budget: Budget, now: float) -> int:
    """Take all there is."""
    taken = 0
    while budget.withdraw(now):
        taken += 1
    return taken


def calm(rate: int, seconds: int = 20, policy: BudgetPolicy = POLICY) -> tuple[Budget, float]:
    """Make a budget that has seen only calls that went well."""
    budget, now = Budget(policy, 0.0), 0.0
    for number in range(1, rate * seconds + 1):
        now = number / rate
        budget.deposit(now)
    return budget, now


def in_window(moments: list[float], end: float) -> int:
    return sum(1 for moment in moments if end - 10 < moment <= end)


def test_a_new_client_may_make_a_quarter_of_the_floor_and_time_brings_no_more() -> None:
    budget = Budget(POLICY, 0.0)
    assert greedy(budget, 0.0) == 5
    assert sum(greedy(budget, tenth / 10) for tenth in range(1, 1000)) == 0


def test_calls_that_go_well_fill_the_purse_however_rare_they_are() -> None:
    budget = Budget(POLICY, 0.0)
    assert greedy(budget, 0.0) == 5
    for number in range(1, 8):
        budget.deposit(3600.0 * number)
    assert greedy(budget, 3600.0 * 7) == 1
    for number in range(8, 100):
        budget.deposit(3600.0 * number)
    assert greedy(budget, 3600.0 * 99) == 5


def test_the_floor_does_not_come_on_top_of_the_share() -> None:
    budget = Budget(POLICY, 0.0)
    for _ in range(1000):
        budget.deposit(1.0)
    assert budget.balance(1.0) == pytest.approx(160)
    # Each failure takes away what its call earned.
    assert greedy(budget, 1.0) == 138


def test_what_was_saved_fades_and_what_was_spent_is_forgotten() -> None:
    budget = Budget(POLICY, 0.0)
    for _ in range(1000):
        budget.deposit(0.0)
    assert budget.balance(0.0) == pytest.approx(160)
    assert 20 < budget.balance(5.0) < 50
    assert budget.balance(20.0) == 5
    assert greedy(budget, 20.0) == 5
    assert budget.balance(60.0) < 1


def test_a_clock_that_leaps_ahead_forgets_everything() -> None:
    budget = Budget(POLICY, 0.0)
    budget.deposit(0.0)
    assert budget.balance(1e9) == 5
    budget.deposit(1e9)
    assert budget.balance(1e9) == 5
    assert repr(budget) == "Budget(1.0 calls, 0.0 failures, 0.0 extra attempts, 5.0 in the purse)"


def test_hedges_leave_a_third_to_retries() -> None:
    budget = Budget(POLICY, 0.0)
    for _ in range(1000):
        budget.deposit(0.0)
    hedges = 0
    while budget.withdraw_hedge(0.0):
        hedges += 1
    assert hedges == pytest.approx(107, abs=1)
    assert greedy(budget, 0.0) > 44


def test_hedges_leave_a_third_of_the_floor_too() -> None:
    budget = Budget(POLICY, 0.0)
    assert [budget.withdraw_hedge(0.0) for _ in range(4)] == [True] * 3 + [False]
    assert greedy(budget, 0.0) == 2


def test_a_failure_that_was_not_paid_counts_too() -> None:
    budget, now = calm(100, policy=BudgetPolicy(per_second=0.0))
    greedy(budget, now)
    for _ in range(500):
        assert not budget.withdraw(now)
    for number in range(400):
        budget.deposit(now + number / 1000)
    assert budget.balance(now + 0.4) < 1


@pytest.mark.parametrize("rate", [10, 20, 40, 100, 200, 1000])
@pytest.mark.parametrize("failing", [0.1, 0.2, 0.25, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("hedging", [False, True])
def test_attempts_are_a_fifth_more_than_calls_at_most_in_any_ten_seconds(
    rate: int, failing: float, hedging: bool
) -> None:
    budget, now = calm(rate)
    extras = list[float]()
    dice = random.Random(1)
    for number in range(1, 30 * rate):
        now = 20 + number / rate
        budget.deposit(now)
        while hedging and budget.withdraw_hedge(now):
            extras.append(now)
        attempts = 1
        while dice.random() < failing and attempts < 5 and budget.withdraw(now):
            extras.append(now)
            attempts += 1
    worst = max(in_window(extras, 20 + step / 4) for step in range(120))
    assert worst <= 2.0 * rate + 1


@pytest.mark.parametrize("rate", [40, 100, 1000])
def test_where_everything_fails_retries_stop_with_what_was_saved(rate: int) -> None:
    budget, now = calm(rate)
    extras = list[float]()
    for number in range(1, 30 * rate):
        now = 20 + number / rate
        budget.deposit(now)
        extras += [now] * greedy(budget, now)
    assert in_window(extras, 30.0) <= 0.6 * rate + 20
    assert in_window(extras, 45.0) == 0


RARE = [0.02, 0.5, 1.0, 2.0, 5.0, 10.0]


@pytest.mark.parametrize("rate", [*RARE, 40.0])
@pytest.mark.parametrize("calm", [0, 100])
def test_where_everything_fails_whoever_calls_rarely_spends_a_purse_and_then_nothing(rate: float, calm: int) -> None:
    budget, dice = Budget(POLICY, 0.0), random.Random(1)
    for number in range(calm):
        budget.deposit(number / rate)
    extras = list[float]()
    for number in range(1, int(300 * rate) + 20):
        now = (calm + number) / rate
        budget.deposit(now)
        # Failures may be told at once, or after a deadline.
        asked = now + dice.choice((0.0, 0.001, 0.3 / rate))
        extras += [asked] * sum(budget.withdraw(asked) for _ in range(3))
    assert 4 <= len(extras) <= max(5, 0.6 * rate) + 2
    assert extras[-1] < (calm + 20) / rate + 5


@pytest.mark.parametrize("rate", RARE)
@pytest.mark.parametrize("failing", [0.1, 0.3, 0.6, 0.9])
def test_in_the_long_run_a_client_of_any_rate_makes_a_fifth_more_attempts_at_most(rate: float, failing: float) -> None:
    budget, dice, extras, calls = Budget(POLICY, 0.0), random.Random(1), 0, 3000
    for number in range(calls):
        now = number / rate
        budget.deposit(now)
        attempts = 1
        while dice.random() < failing and attempts < 4 and budget.withdraw(now):
            extras, attempts = extras + 1, attempts + 1
    assert extras <= 0.16 * calls + 5


@pytest.mark.parametrize("rate", RARE)
def test_a_lone_failure_after_a_calm_is_paid_however_rare_calls_are(rate: float) -> None:
    budget, refused = Budget(POLICY, 0.0), 0
    greedy(budget, 0.0)
    for number in range(1, 1000):
        budget.deposit(number / rate)
        if number % 20 == 0:
            refused += not budget.withdraw(number / rate)
    assert refused == 0


@pytest.mark.parametrize("rate", RARE)
@pytest.mark.parametrize("instances", [2, 3, 5])
def test_an_instance_that_fails_every_call_is_paid_until_its_breaker_opens_and_at_each_probe(
    rate: float, instances: int
) -> None:
    budget, failures, refused = Budget(POLICY, 0.0), 0, 0
    for number in range(2000):
        now = number / rate
        budget.deposit(now)
        # Five failures in a row open the breaker; one more half a minute later does again, and then later.
        left_alone = failures >= 5 and number % (30 * instances) != 0
        if number % instances == 0 and not left_alone:
            failures += 1
            refused += not budget.withdraw(now)
    assert refused == 0


def test_when_one_of_three_dies_a_second_of_its_calls_is_paid_at_once() -> None:
    for rate in (40, 100, 200, 1000):
        budget, now = calm(rate)
        assert greedy(budget, now) >= rate / 3


@pytest.mark.parametrize("rate", [40, 100, 200, 1000])
def test_an_instance_of_three_that_fails_a_third_of_its_calls_is_carried_until_it_is_ejected(rate: int) -> None:
    refused = 0
    for seed in range(20):
        budget, now = calm(rate)
        dice = random.Random(seed)
        for number in range(1, 5 * rate):
            now = 20 + number / rate
            budget.deposit(now)
            if dice.random() < 1 / 9:
                refused += not budget.withdraw(now)
    assert refused <= 0.0005 * 20 * 5 * rate


@given(
    gaps=st.lists(st.floats(0, 0.1), min_size=1, max_size=400),
    wanted=st.lists(st.integers(0, 4), min_size=1, max_size=50),
)
def test_calls_of_ten_a_second_and_more_make_a_fifth_more_attempts_and_a_few_at_most(
    gaps: list[float], wanted: list[int]
) -> None:
    budget, now, extras = Budget(POLICY, 0.0), 0.0, 0
    for calls, gap in enumerate(gaps, 1):
        now += gap
        budget.deposit(now)
        extras += sum(budget.withdraw(now) for _ in range(wanted[calls % len(wanted)]))
        assert extras <= 0.2 * calls + 6


@given(st.integers(0, 2**32), st.floats(0.5, 300), st.floats(0, 1))
def test_any_load_stays_within_what_it_earned_or_the_floor(seed: int, rate: float, wanting: float) -> None:
    dice, now, life = random.Random(seed), 0.0, 10 / 3
    budget = Budget(POLICY, 0.0)
    calls, extras = list[float](), list[float]()
    for _ in range(400):
        # Bursts and pauses, around the rate.
        now += dice.expovariate(rate) * dice.choice((0.1, 1, 1, 3))
        budget.deposit(now)
        calls.append(now)
        if dice.random() < wanting:
            take = dice.choice((budget.withdraw, budget.withdraw_hedge))
            extras += [now] * sum(take(now) for _ in range(dice.randrange(4)))
    for end in (now, now * 0.7, now * 0.3):
        begin = end - 10
        saved = sum(math.exp((moment - begin) / life) for moment in calls if moment <= begin)
        share = 0.16 * (in_window(calls, end) + saved)
        assert in_window(extras, end) <= max(share, 20) + 6


@given(st.integers(0, 2**32))
def test_whatever_is_asked_an_attempt_is_given_where_there_is_one(seed: int) -> None:
    dice, now = random.Random(seed), 0.0
    budget = Budget(POLICY, 0.0)
    for _ in range(200):
        now += dice.expovariate(20)
        if dice.random() < 0.5:
            budget.deposit(now)
        paid = budget.balance(now)
        assert paid >= 0
        assert budget.withdraw(now) is (paid >= 1)
