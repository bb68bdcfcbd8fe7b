"""gRFC A6's hedging, line by line, and the delay that follows a method."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.policy import BudgetPolicy, HedgingPolicy
from mesh.resilience.budget import Budget
from mesh.resilience.hedge import Hedges, Tail
from mesh.resilience.retry import Failure, Stop

POLICY = HedgingPolicy(max_attempts=4, delay=0.5, codes=frozenset({"UNAVAILABLE", "INTERNAL", "ABORTED"}))
DOWN = Failure("UNAVAILABLE")
EMPTY = BudgetPolicy(share=0.0, per_second=0.0)


def hedges(policy: HedgingPolicy = POLICY, budget: BudgetPolicy | None = None, allowed: int | None = None) -> Hedges:
    return Hedges(policy, Budget(budget or BudgetPolicy(), 0.0), allowed=allowed)


# gRFC A6, "Summary of Retry and Hedging Logic", column "hedging policy": what a server answers, and what is to be done
# if no other attempt is under way, and if one is. A float: another attempt after so many seconds.
A6 = [
    ("2: retryable/non-fatal", DOWN, 0.0, 0.0),
    ("2: retryable/non-fatal", Failure("INTERNAL"), 0.0, 0.0),
    ("2: retryable/non-fatal", Failure("ABORTED"), 0.0, 0.0),
    ("3: fatal", Failure("INVALID_ARGUMENT"), Stop.CODE, Stop.CODE),
    ("3: fatal", Failure("DEADLINE_EXCEEDED"), Stop.CODE, Stop.CODE),
    ("4: pushback, don't retry", Failure("UNAVAILABLE", pushback="-1"), Stop.PUSHBACK, None),
    ("4: pushback, don't retry", Failure("UNAVAILABLE", pushback="soon"), Stop.PUSHBACK, None),
    ("5: pushback, n ms", Failure("UNAVAILABLE", pushback="250"), 0.25, 0.25),
    ("5: pushback, n ms", Failure("UNAVAILABLE", pushback="0"), 0.0, 0.0),
    ("fatal, whatever its pushback", Failure("INVALID_ARGUMENT", pushback="5"), Stop.CODE, Stop.CODE),
    ("committed", Failure("UNAVAILABLE", committed=True), Stop.COMMITTED, Stop.COMMITTED),
    ("transparent", Failure("UNAVAILABLE", unsent=True), 0.0, 0.0),
    ("transparent, pushback, don't retry", Failure("UNAVAILABLE", unsent=True, pushback="-1"), Stop.PUSHBACK, None),
    ("transparent, pushback, n ms", Failure("UNAVAILABLE", unsent=True, pushback="250"), 0.25, 0.25),
    ("pushback past the deadline", Failure("UNAVAILABLE", pushback="60000"), Stop.DEADLINE, None),
    # Ours: a server that stops cancels what it has not accepted.
    ("cancelled by the server", Failure("CANCELLED"), 0.0, 0.0),
]


@pytest.mark.parametrize(("row", "failure", "alone", "beside"), A6)
def test_decisions_are_those_of_the_table(
    row: str, failure: Failure, alone: float | Stop, beside: float | Stop | None
) -> None:
    assert hedges().after(failure, 0.0, 10.0) == alone
    machine = hedges()
    assert machine.hedge(0.5)
    assert machine.after(failure, 0.6, 10.0) == beside


def test_after_each_delay_one_more_attempt_until_there_are_as_many_as_allowed() -> None:
    machine = hedges()
    assert [machine.hedge(0.5 * n) for n in range(1, 6)] == [True, True, True, False, False]
    assert (machine.attempts, machine.under_way, machine.has_more) == (4, 4, False)
    assert repr(machine) == "Hedges(4 of 4, 4 under way)"


def test_no_policy_gives_more_than_five_attempts() -> None:
    machine = hedges(HedgingPolicy(max_attempts=100), BudgetPolicy(per_second=10.0))
    assert sum(machine.hedge(0.1) for _ in range(50)) == 4


def test_a_call_made_for_another_makes_no_more_than_what_is_left() -> None:
    assert not hedges(allowed=1).hedge(0.5)
    machine = hedges(allowed=2)
    assert [machine.hedge(0.5), machine.hedge(1.0)] == [True, False]


def test_if_all_attempts_fail_there_are_no_retries() -> None:
    machine = hedges()
    for _ in range(3):
        assert machine.hedge(0.5)
    assert [machine.after(DOWN, 1.0, 10.0) for _ in range(4)] == [None, None, None, Stop.ATTEMPTS]


def test_a_failure_takes_its_attempt_from_the_same_number() -> None:
    machine = hedges()
    assert [machine.after(DOWN, 0.0, 10.0) for _ in range(4)] == [0.0, 0.0, 0.0, Stop.ATTEMPTS]


def test_after_a_pushback_that_forbids_more_those_under_way_may_still_answer() -> None:
    machine = hedges()
    machine.hedge(0.5)
    assert machine.after(Failure("UNAVAILABLE", pushback="-1"), 0.6, 10.0) is None
    assert not machine.has_more
    assert not machine.hedge(1.0)
    assert machine.after(DOWN, 1.1, 10.0) is Stop.PUSHBACK
    assert repr(machine) == "Hedges(2 of 4, 0 under way, stopped by pushback)"


def test_a_fatal_answer_ends_the_call_though_others_are_under_way() -> None:
    machine = hedges()
    machine.hedge(0.5)
    assert machine.after(Failure("NOT_FOUND"), 0.6, 10.0) is Stop.CODE


def test_only_the_first_unsent_attempt_is_free() -> None:
    unsent = Failure("UNAVAILABLE", unsent=True)
    budget = Budget(BudgetPolicy(), 0.0)
    machine = Hedges(POLICY, budget)
    assert machine.after(unsent, 0.0, 10.0) == 0.0
    assert (machine.attempts, budget.balance(0.0)) == (1, 5)
    assert machine.after(unsent, 0.0, 10.0) == 0.0
    assert (machine.attempts, budget.balance(0.0)) == (2, 4)
    # Not sent, so whatever the code is, it is no answer of the server's.
    assert hedges().after(Failure("UNKNOWN", unsent=True), 0.0, 10.0) == 0.0


def test_no_attempt_is_begun_after_the_deadline() -> None:
    for failure in (DOWN, Failure("UNAVAILABLE", unsent=True)):
        assert hedges().after(failure, 10.0, 0.0) is Stop.DEADLINE


def test_a_hedge_that_is_not_paid_is_left_out_and_may_be_paid_later() -> None:
    machine = hedges(budget=BudgetPolicy(share=0.0, per_second=0.45))
    assert machine.hedge(0.0) is False
    assert (machine.has_more, machine.attempts, machine.under_way) == (True, 1, 1)
    budget = Budget(BudgetPolicy(per_second=0.6), 0.0)
    machine = Hedges(POLICY, budget)
    assert [machine.hedge(0.0), machine.hedge(0.1), machine.hedge(60.0)] == [True, False, False]
    for _ in range(20):
        budget.deposit(120.0)
    assert machine.hedge(180.0)
    assert hedges(budget=EMPTY).after(DOWN, 0.6, 10.0) is Stop.BUDGET


def test_after_a_hedge_that_was_not_paid_a_failure_may_still_be_made_good() -> None:
    # One attempt is left in the purse: hedges leave it to failures.
    machine = hedges(budget=BudgetPolicy(share=0.0, per_second=0.45))
    assert not machine.hedge(0.5)
    assert machine.after(DOWN, 0.6, 10.0) == 0.0
    assert machine.after(DOWN, 0.7, 10.0) is Stop.BUDGET


class A6Machine(RuleBasedStateMachine):
    """Any order of delays and answers, against a model that only counts."""

    @initialize(allowed=st.integers(1, 7), rich=st.booleans())
    def begin(self, allowed: int, rich: bool) -> None:
        self.allowed = min(allowed, 5)
        self.machine = hedges(HedgingPolicy(max_attempts=allowed), BudgetPolicy() if rich else BudgetPolicy(0.0, 0.6))
        self.made = self.under_way = 1
        self.free_used = self.ended = self.forbidden = False
        self.now = 0.0

    @precondition(lambda self: self.ended)
    @rule(allowed=st.integers(1, 7), rich=st.booleans())
    def another_call(self, allowed: int, rich: bool) -> None:
        self.begin(allowed, rich)

    @precondition(lambda self: not self.ended)
    @rule()
    def delay_is_over(self) -> None:
        self.now += 0.01
        if self.machine.hedge(self.now):
            assert not self.forbidden
            self.made += 1
            self.under_way += 1

    @precondition(lambda self: not self.ended and self.under_way)
    @rule(
        code=st.sampled_from(["UNAVAILABLE", "CANCELLED", "NOT_FOUND"]),
        unsent=st.booleans(),
        pushback=st.sampled_from([None, "-1", "0", "5", "x"]),
        left=st.sampled_from([0.0, 0.004, 10.0]),
    )
    def attempt_fails(self, code: str, unsent: bool, pushback: str | None, left: float) -> None:
        self.under_way -= 1
        before = self.machine.attempts
        decision = self.machine.after(Failure(code, unsent, pushback=pushback), self.now, left)
        self.forbidden = self.forbidden or (pushback in ("-1", "x") and self.machine.has_more is False)
        if isinstance(decision, Stop):
            self.ended = True
            assert self.under_way == 0 or decision is Stop.CODE
        elif decision is None:
            assert self.under_way > 0
        else:
            assert 0 <= decision < max(left, 1e-9)
            self.under_way += 1
            if self.machine.attempts == before:
                assert unsent
                assert not self.free_used
                self.free_used = True
            else:
                self.made += 1

    @invariant()
    def counts_agree(self) -> None:
        if not self.ended:
            assert self.machine.under_way == self.under_way >= 1
        assert self.machine.attempts == self.made <= max(self.allowed, 1)


TestAnyOrder = A6Machine.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=20)


# -- the delay


def test_the_tail_is_not_known_from_a_few() -> None:
    tail = Tail(0.0)
    assert tail.p95(0.0) is None
    for _ in range(19):
        tail.took(0.01)
    assert tail.p95(0.1) is None
    tail.took(0.01)
    tail.took(0.01)
    assert tail.p95(0.2) == pytest.approx(0.01, rel=0.15)
    assert repr(tail).startswith("Tail(20.6 times, 95 % within 0.01")


@given(st.integers(0, 2**32), st.sampled_from([0.002, 0.02, 0.2]))
def test_the_tail_is_the_95th_percentile_give_or_take_a_seventh(seed: int, mean: float) -> None:
    dice, tail = random.Random(seed), Tail(0.0)
    times = [dice.expovariate(1 / mean) for _ in range(1000)]
    for seconds in times:
        tail.took(seconds)
    found, true = tail.p95(0.0), sorted(times)[950]
    assert found is not None
    assert max(true, 0.001) * 0.9 <= found <= max(true, 0.001) * 1.2


def test_the_tail_follows_a_service_that_gets_slower_and_faster_again() -> None:
    tail, now = Tail(0.0), 0.0
    seen = []
    for seconds in (0.005, 0.1, 0.005):
        for _ in range(4000):
            now += 0.01
            tail.took(seconds)
        seen.append(tail.p95(now))
    assert seen == [pytest.approx(s, rel=0.15) for s in (0.005, 0.1, 0.005)]


def test_the_tail_is_worked_out_ten_times_a_second_at_most() -> None:
    tail = Tail(0.0)
    for _ in range(100):
        tail.took(0.01)
    before = tail.p95(0.0)
    for _ in range(1000):
        tail.took(1.0)
    assert tail.p95(0.09) == before
    assert tail.p95(0.11) == pytest.approx(1.0, rel=0.15)


def test_times_beyond_all_bounds_count_as_the_last_one() -> None:
    tail = Tail(0.0)
    for _ in range(100):
        tail.took(1e9)
    assert tail.p95(0.0) == pytest.approx(3.0, rel=0.2)


def test_attempts_that_are_given_up_keep_the_tail_from_shrinking() -> None:
    # Answers take 10 ms, every fifth 100 ms; who waits longer than the tail is given up for a faster one.
    tail, now = Tail(0.0), 0.0
    dice = random.Random(3)
    for _ in range(100):
        tail.took(0.01 if dice.random() > 0.2 else 0.1)
    for _ in range(5000):
        now += 0.005
        delay = tail.p95(now)
        assert delay is not None
        seconds = 0.01 if dice.random() > 0.2 else 0.1
        tail.took(min(seconds, delay + 0.01))
    assert tail.p95(now + 1) == pytest.approx(0.1, rel=0.3)
