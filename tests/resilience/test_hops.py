"""What is handed on from hop to hop, and what a chain makes of it: the very machines of the client, without a wire."""

from __future__ import annotations

from math import comb
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy import BudgetPolicy, MethodPolicy, RetryPolicy
from mesh.resilience import hops
from mesh.resilience.budget import Budget
from mesh.resilience.hops import (
    ATTEMPTS_LEFT,
    PREVIOUS_ATTEMPTS,
    PRIORITY,
    STOP_RETRYING,
    Hop,
    attempts_allowed,
    deadline_of,
    entries_of,
    handed_on,
    parse_left,
)
from mesh.resilience.retry import PUSHBACK, Failure, Retries, Stop

UNBOUNDED = BudgetPolicy(per_second=1e9)
DOWN = Failure("UNAVAILABLE")


def hop_of(*metadata: tuple[str, str | bytes]) -> Hop:
    return Hop(10.0, lambda: metadata)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        *(("0", 0), ("2", 2), ("4", 4), ("5", 4), ("9999", 4), ("10000", None), ("-1", None), ("+1", None), ("", None)),
        *((" 1", None), ("1 ", None), ("٣", None), ("²", None), ("1.0", None), ("0x1", None), ("1e3", None)),
        (b"1", None),
    ],
)
def test_what_a_stranger_says_is_left_is_checked_and_capped(text: str | bytes, left: int | None) -> None:
    assert parse_left(text) == left


@given(st.one_of(st.text(), st.binary()))
def test_any_text_is_a_number_within_the_cap_or_nothing(text: str | bytes) -> None:
    left = parse_left(text)
    assert left is None or 0 <= left <= 4


def test_without_an_entry_nothing_is_handed_on_until_something_is_spent() -> None:
    for hop in (None, hop_of(), hop_of((ATTEMPTS_LEFT, "many"))):
        assert handed_on(hop, allowed=3, spent=0) == []
        assert handed_on(hop, allowed=3, spent=1) == [(ATTEMPTS_LEFT, "1")]
        assert handed_on(hop, allowed=3, spent=2) == [(ATTEMPTS_LEFT, "0")]
        assert attempts_allowed(hop, 3) == 3


def test_a_hop_spends_only_from_what_it_was_given() -> None:
    hop = hop_of((ATTEMPTS_LEFT, "1"))
    assert attempts_allowed(hop, 4) == 2
    assert handed_on(hop, allowed=4, spent=0) == [(ATTEMPTS_LEFT, "1")]
    assert handed_on(hop, allowed=4, spent=1) == [(ATTEMPTS_LEFT, "0")]


def test_a_method_that_is_never_repeated_hands_on_all_that_is_left() -> None:
    hop = hop_of((ATTEMPTS_LEFT, "3"))
    assert (attempts_allowed(hop, 1), handed_on(hop, allowed=1, spent=0)) == (1, [(ATTEMPTS_LEFT, "3")])


def test_of_several_entries_the_smallest_counts() -> None:
    assert hop_of((ATTEMPTS_LEFT, "3"), (ATTEMPTS_LEFT, "1"), (ATTEMPTS_LEFT, "x")).told() == (1, "")


@pytest.mark.parametrize(("said", "told"), [("critical", "critical"), ("sheddable", "sheddable"), ("HIGH", "")])
def test_a_priority_goes_on_with_the_call_if_it_is_one(said: str, told: str) -> None:
    assert handed_on(hop_of((PRIORITY, said)), allowed=3, spent=0) == ([(PRIORITY, told)] if told else [])


def test_of_several_priorities_the_last_counts() -> None:
    assert hop_of((PRIORITY, "critical"), (PRIORITY, "default")).told() == (None, "")
    assert hop_of((PRIORITY, "critical"), (PRIORITY, "sheddable")).told() == (None, "sheddable")


def test_metadata_is_read_once_and_only_when_asked() -> None:
    reads: list[int] = []

    def read() -> Any:
        reads.append(1)
        return ((ATTEMPTS_LEFT, "2"),)

    hop = Hop(10.0, read)
    assert not reads
    assert (hop.told(), hop.told(), len(reads)) == ((2, ""), (2, ""), 1)
    assert repr(hop) == "Hop(until 10.000, 2 extra attempts, default priority)"


@pytest.mark.parametrize(
    ("failure", "stop", "spent"),
    [(DOWN, stop, True) for stop in (Stop.ATTEMPTS, Stop.BUDGET, Stop.PUSHBACK, Stop.DEADLINE)]
    + [(DOWN, stop, False) for stop in (Stop.CODE, Stop.NOT_IDEMPOTENT, Stop.COMMITTED)]
    # A mark that came from below goes on, whatever this hop might have done by itself.
    + [(Failure("INTERNAL", pushback="-1"), stop, True) for stop in (Stop.CODE, Stop.NOT_IDEMPOTENT)]
    + [(Failure("INTERNAL", pushback="20"), Stop.CODE, False)],
)
def test_only_failures_that_trying_again_did_not_mend_are_marked(failure: Failure, stop: Stop, spent: bool) -> None:
    hop = hop_of()
    hop.failed(failure, stop)
    assert hop.is_spent is spent


def test_blocking_calls_hear_of_a_cancellation_and_late_ones_too() -> None:
    hop, heard = hop_of(), list[str]()
    first, done, late = (lambda: heard.append("first")), (lambda: heard.append("done")), (lambda: heard.append("late"))
    hop.on_cancel(first)
    hop.on_cancel(done)
    hop.forget(done)
    hop.close(cancelled=True)
    hop.on_cancel(late)
    assert heard == ["first", "late"]


def test_nobody_hears_of_a_cancellation_after_it_was_forgotten() -> None:
    hop, heard = hop_of(), list[str]()

    def end() -> None:
        heard.append("cancelled")

    hop.forget(end)
    hop.on_cancel(end)
    hop.forget(end)
    hop.close(cancelled=True)
    assert heard == []


def test_the_attempts_before_are_told_as_grpc_asks() -> None:
    assert entries_of(None, allowed=3, spent=0) == []
    assert entries_of(None, allowed=3, spent=1) == [(ATTEMPTS_LEFT, "1"), (PREVIOUS_ATTEMPTS, "1")]


def test_a_call_ends_no_later_than_the_one_it_is_made_for() -> None:
    assert deadline_of(None, 1.0, 5.0) == 6.0
    assert deadline_of(None, 1.0, None) == float("inf")
    assert deadline_of(hop_of(), 1.0, 5.0) == 6.0
    assert deadline_of(hop_of(), 1.0, 50.0) == deadline_of(hop_of(), 1.0, None) == 10.0


def test_an_answered_call_cancels_nothing() -> None:
    hop, heard = hop_of((ATTEMPTS_LEFT, "1")), list[str]()
    hop.on_cancel(lambda: heard.append("first"))
    hop.close(cancelled=False)
    assert (heard, hop.told()) == ([], (None, ""))


def test_detached_code_runs_on_nobodys_behalf() -> None:
    hop = hop_of()
    token = hops.CURRENT.set(hop)
    try:
        with hops.detached():
            assert hops.CURRENT.get() is None
        assert hops.CURRENT.get() is hop
    finally:
        hops.CURRENT.reset(token)


class Chain:
    """Hops over a leaf that is down. `carries`: entries are handed on; `marks`: answers say "do not repeat"."""

    def __init__(
        self, size: int, extra: int, budget: BudgetPolicy, *, carries: bool = True, marks: bool = True
    ) -> None:
        self.leaf_calls = 0
        self._policy = MethodPolicy(idempotent=True, retry=RetryPolicy(max_attempts=1 + extra))
        self._budgets = [Budget(budget, 0.0) for _ in range(size)]
        self._carries, self._marks = carries, marks

    def call(self, at: int = 0, metadata: tuple[tuple[str, str], ...] = ()) -> Failure:
        """Answer a call that arrives at hop `at` with these entries."""
        if at == len(self._budgets):
            self.leaf_calls += 1
            return DOWN
        hop = Hop(10.0, lambda: metadata)
        allowed = self._policy.retry.max_attempts
        self._budgets[at].deposit(0.0)
        retries = Retries(self._policy, self._budgets[at], repeatable=True, allowed=attempts_allowed(hop, allowed))
        while True:
            entries = handed_on(hop, allowed, retries.attempts - 1) if self._carries else []
            failure = self.call(at + 1, tuple(entries))
            decision = retries.after(failure, 0.0, 0.5, 10.0)
            if isinstance(decision, Stop):
                hop.failed(failure, decision)
                return Failure("UNAVAILABLE", pushback=STOP_RETRYING if hop.is_spent and self._marks else None)


def test_four_hops_of_three_attempts_meet_a_dead_leaf_81_times_where_nothing_is_handed_on() -> None:
    chain = Chain(4, 2, UNBOUNDED, carries=False, marks=False)
    chain.call()
    assert chain.leaf_calls == 81


def test_with_marks_one_hop_tries_again_and_the_others_do_not() -> None:
    chain = Chain(4, 2, UNBOUNDED)
    chain.call()
    assert chain.leaf_calls == 3


@given(st.integers(1, 6), st.integers(0, 4))
def test_without_marks_the_entries_alone_bound_the_road(size: int, extra: int) -> None:
    chain = Chain(size, extra, UNBOUNDED, marks=False)
    chain.call()
    assert chain.leaf_calls == comb(size + extra, extra)


@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 300))
def test_the_budget_of_one_hop_is_all_that_a_dead_leaf_is_asked_beyond_the_calls(
    size: int, extra: int, calls: int
) -> None:
    chain = Chain(size, extra, BudgetPolicy(share=0.2, per_second=0.0))
    for _ in range(calls):
        chain.call()
    assert calls <= chain.leaf_calls <= 1.2 * calls


def test_four_hops_with_the_default_budget_stay_at_a_fifth_and_its_floor() -> None:
    policy = BudgetPolicy()
    chain = Chain(4, 2, policy)
    for _ in range(2000):
        chain.call()
    # All fail, so the last hop's budget earns nothing and has only its floor.
    assert chain.leaf_calls == 2000 + policy.per_second * policy.window * 0.25
    assert chain.leaf_calls <= 2000 * (1 + policy.share)


def test_the_mark_is_what_grpc_itself_understands() -> None:
    assert (PUSHBACK, STOP_RETRYING) == ("grpc-retry-pushback-ms", "-1")
