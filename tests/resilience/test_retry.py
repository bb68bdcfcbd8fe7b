"""gRFC A6, line by line, and what is stricter here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy import BudgetPolicy, MethodPolicy, RetryPolicy
from mesh.resilience.budget import Budget
from mesh.resilience.retry import Failure, Retries, Stop, backoff, parse_pushback

POLICY = MethodPolicy(retry=RetryPolicy(max_attempts=4, initial_backoff=0.1, max_backoff=0.5, backoff_multiplier=2.0))
DOWN = Failure("UNAVAILABLE")


def retries(policy: MethodPolicy = POLICY, *, repeatable: bool = True, budget: BudgetPolicy | None = None) -> Retries:
    return Retries(policy, Budget(budget or BudgetPolicy(), 0.0), repeatable=repeatable)


def decide(machine: Retries, failure: Failure, left: float = 10.0) -> float | Stop:
    return machine.after(failure, 0.0, 0.5, left)


# gRFC A6, "Summary of Retry and Hedging Logic", column "retry policy", and "Transparent Retries": what a server
# answers, and what is to be done. A float: another attempt after so many seconds.
A6 = [
    ("2: retryable/non-fatal", DOWN, 0.1),
    ("3: fatal", Failure("INVALID_ARGUMENT"), Stop.CODE),
    ("4: pushback, don't retry (negative)", Failure("UNAVAILABLE", pushback="-1"), Stop.PUSHBACK),
    ("4: pushback, don't retry (unparsable)", Failure("UNAVAILABLE", pushback="never"), Stop.PUSHBACK),
    ("5: pushback, retry in n ms", Failure("UNAVAILABLE", pushback="70"), 0.07),
    ("fatal, whatever its pushback", Failure("INVALID_ARGUMENT", pushback="70"), Stop.CODE),
    ("committed: response headers came", Failure("UNAVAILABLE", committed=True), Stop.COMMITTED),
    ("transparent: never left, or never seen by the server's logic", Failure("UNAVAILABLE", unsent=True), 0.0),
]


@pytest.mark.parametrize(("row", "failure", "wanted"), A6)
def test_decisions_are_those_of_the_table(row: str, failure: Failure, wanted: float | Stop) -> None:
    assert decide(retries(), failure) == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize(("row", "failure", "wanted"), A6)
def test_after_the_last_attempt_there_is_none_whatever_the_table_says(
    row: str, failure: Failure, wanted: float | Stop
) -> None:
    machine = retries()
    for _ in range(3):
        assert not isinstance(decide(machine, DOWN), Stop)
    expected = wanted if isinstance(wanted, Stop) and wanted is not Stop.PUSHBACK else Stop.ATTEMPTS
    # A6: transparent retries do not count toward the limit of attempts.
    assert decide(machine, failure) == (0.0 if failure.unsent else expected)


def test_after_a_pushback_the_next_pause_is_the_initial_one() -> None:
    machine = retries()
    assert [decide(machine, f) for f in (DOWN, DOWN, Failure("UNAVAILABLE", pushback="5"), DOWN)] == [
        pytest.approx(0.1),
        pytest.approx(0.2),
        0.005,
        Stop.ATTEMPTS,
    ]


def test_an_attempt_that_used_up_its_own_time_is_made_again_though_its_code_is_not_in_the_policy() -> None:
    late = Failure("DEADLINE_EXCEEDED", timed_out=True)
    assert decide(retries(), late) == pytest.approx(0.1)
    assert decide(retries(repeatable=False), late) is Stop.NOT_IDEMPOTENT
    assert decide(retries(), Failure("DEADLINE_EXCEEDED")) is Stop.CODE


@pytest.mark.parametrize(
    ("failure", "repeatable", "wanted"),
    [
        (DOWN, True, 0.1),
        (DOWN, False, Stop.NOT_IDEMPOTENT),
        (Failure("UNAVAILABLE", unsent=True), False, 0.0),
        (Failure("UNAVAILABLE", unsent=True), True, 0.0),
        (Failure("CANCELLED"), True, 0.1),
        (Failure("CANCELLED"), False, Stop.NOT_IDEMPOTENT),
        (Failure("NOT_FOUND"), True, Stop.CODE),
        (Failure("DEADLINE_EXCEEDED"), True, Stop.CODE),
        (Failure("INTERNAL"), True, Stop.CODE),
        (Failure("UNAVAILABLE", committed=True), True, Stop.COMMITTED),
        (Failure("UNAVAILABLE", committed=True, unsent=True), True, Stop.COMMITTED),
        (Failure("UNAVAILABLE", pushback="250"), True, 0.25),
        (Failure("UNAVAILABLE", pushback="0"), True, 0.0),
        (Failure("UNAVAILABLE", pushback="-1"), True, Stop.PUSHBACK),
        (Failure("UNAVAILABLE", pushback="soon"), True, Stop.PUSHBACK),
        (Failure("UNAVAILABLE", pushback=""), True, Stop.PUSHBACK),
        (Failure("UNAVAILABLE", pushback="٣"), True, Stop.PUSHBACK),
        (Failure("UNAVAILABLE", pushback="9" * 40), True, Stop.PUSHBACK),
        (Failure("UNAVAILABLE", pushback="60000"), True, Stop.DEADLINE),
        # Who says something of pauses has seen the request; where it says that it has not, that still goes.
        (Failure("UNAVAILABLE", unsent=True, pushback="-1"), True, Stop.PUSHBACK),
        (Failure("UNAVAILABLE", unsent=True, pushback="250"), False, 0.25),
    ],
)
def test_decision_after_the_first_failure(failure: Failure, repeatable: bool, wanted: float | Stop) -> None:
    assert decide(retries(repeatable=repeatable), failure) == (
        pytest.approx(wanted) if isinstance(wanted, float) else wanted
    )


def test_pauses_grow_to_their_cap_and_attempts_end() -> None:
    machine = retries(MethodPolicy(retry=RetryPolicy(5, 0.1, 0.3, 2.0)))
    assert [decide(machine, DOWN) for _ in range(5)] == [
        pytest.approx(0.1),
        pytest.approx(0.2),
        pytest.approx(0.3),
        pytest.approx(0.3),
        Stop.ATTEMPTS,
    ]


def test_no_policy_gives_more_than_five_attempts() -> None:
    machine = retries(MethodPolicy(retry=RetryPolicy(max_attempts=100)))
    assert [isinstance(decide(machine, DOWN), Stop) for _ in range(5)] == [False] * 4 + [True]


def test_one_attempt_means_no_retry_at_all() -> None:
    for failure in (DOWN, Failure("UNAVAILABLE", unsent=True)):
        assert decide(retries(MethodPolicy(retry=RetryPolicy(max_attempts=1))), failure) is Stop.ATTEMPTS


def test_a_pushback_begins_the_backoff_anew() -> None:
    machine = retries()
    decide(machine, DOWN)
    assert decide(machine, Failure("UNAVAILABLE", pushback="7")) == 0.007
    assert decide(machine, DOWN) == pytest.approx(0.1)


def test_only_the_first_unsent_attempt_is_free() -> None:
    machine = retries(repeatable=False)
    unsent = Failure("UNAVAILABLE", unsent=True)
    assert [decide(machine, unsent) for _ in range(5)] == [
        0.0,
        pytest.approx(0.1),
        pytest.approx(0.2),
        pytest.approx(0.4),
        Stop.ATTEMPTS,
    ]
    assert machine.attempts == 4


def test_the_free_attempt_is_not_told_to_servers() -> None:
    machine = retries()
    decide(machine, Failure("UNAVAILABLE", unsent=True))
    assert machine.attempts == 1


def test_an_empty_budget_stops() -> None:
    machine = retries(budget=BudgetPolicy(share=0.0, per_second=0.45, window=10.0))
    assert decide(machine, DOWN) == pytest.approx(0.1)
    assert decide(machine, DOWN) is Stop.BUDGET


def test_a_pause_past_the_deadline_is_not_begun_and_not_paid() -> None:
    budget = Budget(BudgetPolicy(), 0.0)
    machine = Retries(POLICY, budget, repeatable=True)
    assert machine.after(DOWN, 0.0, 0.5, 0.05) is Stop.DEADLINE
    assert budget.balance(0.0) == 5


@given(st.integers(1, 2000), st.floats(0, 0.999999), st.floats(0.001, 10), st.floats(0.001, 60), st.floats(1, 100))
def test_backoff_is_jittered_by_a_fifth_around_a_capped_growth(
    retry: int, draw: float, initial: float, cap: float, multiplier: float
) -> None:
    policy = RetryPolicy(initial_backoff=initial, max_backoff=cap, backoff_multiplier=multiplier)
    assert 0.8 * min(initial, cap) * 0.999 <= backoff(policy, retry, draw) <= 1.2 * cap


@given(st.text())
def test_any_pushback_is_a_pause_or_an_end(text: str) -> None:
    pause = parse_pushback(text)
    assert pause is None or 0 <= pause < 1e6
