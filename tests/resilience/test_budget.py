"""The retry budget against a slow model that remembers every moment."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.policy import BudgetPolicy
from mesh.resilience.budget import Budget

POLICY = BudgetPolicy(share=0.2, per_second=10.0, window=10.0)


def test_an_idle_client_may_make_the_floor() -> None:
    budget = Budget(POLICY, 0.0)
    assert sum(budget.withdraw(0.0) for _ in range(200)) == 100


def test_a_fifth_of_the_calls_come_on_top() -> None:
    budget = Budget(POLICY, 0.0)
    for _ in range(1000):
        budget.deposit(1.0)
    assert sum(budget.withdraw(1.0) for _ in range(1000)) == 300


def test_deposits_and_withdrawals_are_forgotten_after_the_window() -> None:
    budget = Budget(POLICY, 0.0)
    for _ in range(1000):
        budget.deposit(0.5)
    assert sum(budget.withdraw(0.5) for _ in range(1000)) == 300
    assert budget.balance(9.5) == 0
    assert budget.balance(10.5) == 100


def test_a_clock_that_leaps_ahead_forgets_everything() -> None:
    budget = Budget(POLICY, 0.0)
    budget.deposit(0.0)
    assert budget.balance(1e9) == 100
    budget.deposit(1e9)
    assert budget.balance(1e9) == 100.2


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_extra_attempts_never_pass_the_share_and_the_floor(history: list[tuple[float, bool]]) -> None:
    policy = BudgetPolicy(share=0.2, per_second=0.5, window=10.0)
    budget, now = Budget(policy, 0.0), 0.0
    calls, extras = list[float](), list[float]()
    for passed, is_call in history:
        now += passed
        if is_call:
            calls.append(now)
            budget.deposit(now)
        elif budget.withdraw(now):
            extras.append(now)
        # The window forgets in slices of a second, so any nine seconds are surely within it, and eleven hold it.
        recent = [t for t in extras if t > now - 9]
        assert len(recent) <= 0.2 * len([t for t in calls if t > now - 21]) + 5 + 1
