"""The breaker, by its rules and against a model of the laws that any order of events must keep."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.policy import BreakerPolicy
from mesh.resilience.breaker import Breaker, BreakerState, Cause, Permit, is_panic
from mesh.resilience.outcome import Outcome

POLICY = BreakerPolicy(window=10, minimum_calls=10, consecutive_failures=3, open_for=30.0, half_open_permits=2)


def run(breaker: Breaker, outcomes: str, now: float = 0.0) -> None:
    """Give one call per letter its result: s(uccess), f(ailure), n(eutral)."""
    words = {"s": Outcome.SUCCESS, "f": Outcome.FAILURE, "n": Outcome.NEUTRAL}
    for letter in outcomes:
        permit = breaker.acquire(now)
        assert permit is not None
        permit.record(words[letter], now, 0.5)


def test_opens_after_failures_in_a_row() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "fsffsff")
    assert breaker.is_closed
    run(breaker, "f")
    assert breaker.state is BreakerState.OPEN
    assert breaker.acquire(29.9) is None


def test_opens_by_rate_only_after_enough_calls() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "sfsfsfsfs")
    assert breaker.is_closed
    run(breaker, "f")
    assert breaker.state is BreakerState.OPEN


def test_forgets_what_left_the_window() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "ffsffs" + "s" * 10)
    assert repr(breaker) == "Breaker(closed, generation 1, 0 failed and 0 slow of 10, 0 failed in a row)"


def test_neutral_results_neither_open_nor_reset() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "ffnnnnnnnnnnnnnnnf")
    assert breaker.state is BreakerState.OPEN


def test_late_success_does_not_close_an_open_breaker() -> None:
    breaker = Breaker(POLICY)
    late = breaker.acquire(0.0)
    run(breaker, "fff")
    assert late is not None
    late.record(Outcome.SUCCESS, 1.0)
    assert breaker.state is BreakerState.OPEN


def test_late_failure_does_not_open_a_breaker_that_has_closed_again() -> None:
    breaker = Breaker(POLICY)
    late = [breaker.acquire(0.0) for _ in range(5)]
    run(breaker, "fff")
    run(breaker, "ss", now=40.0)
    for permit in late:
        assert permit is not None
        permit.record(Outcome.FAILURE, 41.0)
    assert breaker.is_closed


def test_half_open_lets_a_counted_few_through_and_closes_when_all_succeed() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "fff")
    first, second, third = (breaker.acquire(31.0) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is None
    first.record(Outcome.SUCCESS, 31.0)
    assert breaker.state is BreakerState.HALF_OPEN
    second.record(Outcome.SUCCESS, 31.0)
    assert breaker.is_closed


def test_half_open_opens_again_at_one_failure() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "fff")
    run(breaker, "sf", now=31.0)
    assert breaker.state is BreakerState.OPEN
    # The second opening in a row: twice as long.
    assert breaker.acquire(90.0) is None
    assert breaker.acquire(91.0) is not None


def test_a_neutral_probe_gives_its_permit_back() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "fff")
    run(breaker, "n" * 20, now=31.0)
    run(breaker, "ss", now=31.0)
    assert breaker.is_closed


def test_open_time_is_jittered_by_a_fifth() -> None:
    for draw, until in ((0.0, 24.0), (0.5, 30.0), (0.999999, 35.99)):
        breaker = Breaker(POLICY)
        for _ in range(3):
            permit = breaker.acquire(0.0)
            assert permit is not None
            permit.record(Outcome.FAILURE, 0.0, draw)
        assert breaker.acquire(until - 0.01) is None
        assert breaker.acquire(until + 0.02) is not None


def test_a_new_connection_allows_probes_at_once() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "fff")
    breaker.allow_probes(0.1)
    run(breaker, "ss", now=0.1)
    assert breaker.is_closed


def test_probes_without_a_verdict_are_followed_by_more_after_a_while() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "fff")
    held = [breaker.acquire(31.0) for _ in range(2)]
    assert breaker.acquire(60.9) is None
    run(breaker, "ss", now=61.0)
    assert breaker.is_closed
    for late in held:
        assert late is not None
        late.record(Outcome.FAILURE, 62.0)
    assert breaker.is_closed


def test_a_fresh_connection_means_nothing_to_a_breaker_that_is_not_open() -> None:
    breaker = Breaker(POLICY)
    breaker.allow_probes(0.0)
    assert breaker.is_closed


def test_fresh_connections_allow_probes_a_second_later_each_time() -> None:
    breaker = Breaker(POLICY)
    run(breaker, "fff")
    for now in (10.0, 20.0, 30.0):
        breaker.allow_probes(now)
        wait = now / 10 - 1
        assert wait == 0 or breaker.acquire(now + wait - 0.01) is None
        run(breaker, "f", now + wait)
        assert breaker.state is BreakerState.OPEN


def test_it_opens_for_longer_each_time_in_a_row_up_to_a_limit() -> None:
    breaker, now = Breaker(POLICY._replace(max_open_for=100.0)), 0.0
    run(breaker, "fff")
    for wait in (30.0, 60.0, 90.0, 100.0, 100.0):
        assert breaker.acquire(now + wait - 0.01) is None
        now += wait
        run(breaker, "f", now)


def test_an_opening_is_forgotten_for_each_time_that_it_is_closed_so_long() -> None:
    for calm, wait in ((29.0, 60.0), (31.0, 30.0), (10_000.0, 30.0)):
        breaker = Breaker(POLICY)
        run(breaker, "fff")
        run(breaker, "ss", now=31.0)
        run(breaker, "fff", now=31.0 + calm)
        assert breaker.acquire(31.0 + calm + wait - 0.01) is None
        assert breaker.acquire(31.0 + calm + wait) is not None


def test_causes_are_told() -> None:
    told: list[Cause | None] = []
    for outcomes in ("fff", "ffsffsffsf"):
        run(Breaker(POLICY, lambda _, cause: told.append(cause)), outcomes)
    assert told == [Cause.CONSECUTIVE_FAILURES, Cause.FAILURE_RATE]


def test_changes_are_told_after_they_have_settled() -> None:
    told: list[tuple[BreakerState, BreakerState]] = []
    breaker = Breaker(POLICY, lambda state, _: told.append((state, breaker.state)))
    run(breaker, "fff")
    run(breaker, "ss", now=31.0)
    assert [said for said, _ in told] == ["open", "half_open", "closed"]
    assert all(said is was for said, was in told)


def test_panic_is_more_than_half() -> None:
    assert [is_panic(n, 4) for n in range(5)] == [False, False, False, True, True]
    assert is_panic(1, 1)


events = st.lists(st.tuples(st.sampled_from("asfn"), st.floats(0, 20), st.floats(0, 0.999)), max_size=200)


@given(events)
def test_laws_hold_in_any_order_of_events(history: list[tuple[str, float, float]]) -> None:
    breaker, now, held = Breaker(POLICY), 0.0, list[Permit]()
    generation, probes, opened_at = 0, 0, -1e9
    for kind, passed, draw in history:
        now += passed
        before = breaker.state
        if kind == "a":
            permit = breaker.acquire(now)
            if permit is not None:
                held.append(permit)
            if breaker._generation != generation:
                generation, probes = breaker._generation, 0
            if breaker.state is BreakerState.HALF_OPEN and permit is not None:
                probes += 1
            # An open breaker lets nothing through before four fifths of its time are over.
            assert not (before is BreakerState.OPEN and permit is not None and now < opened_at + 24.0)
            assert permit is not None or before is not BreakerState.CLOSED
        elif held:
            outcome = {"s": Outcome.SUCCESS, "f": Outcome.FAILURE, "n": Outcome.NEUTRAL}[kind]
            stale = held[-1]._generation != breaker._generation
            held.pop().record(outcome, now, draw)
            assert not stale or breaker.state is before
            if before is not BreakerState.OPEN and breaker.state is BreakerState.OPEN:
                assert outcome is Outcome.FAILURE
                opened_at = now
            if before is BreakerState.HALF_OPEN and outcome is Outcome.NEUTRAL and not stale:
                probes -= 1
        assert breaker.state is not BreakerState.HALF_OPEN or probes <= POLICY.half_open_permits
        counts = breaker.recent(now, 100)
        assert breaker._window.failed == counts.failed <= counts.calls <= 10


def test_what_somebody_else_finds_ends_or_renews_the_wait_of_an_open_breaker_only() -> None:
    breaker = Breaker(POLICY)
    for well in (True, False):
        breaker.hint(well=well, now=0.0, draw=0.5)
        breaker.postpone(100.0)
        assert breaker.is_closed
    run(breaker, "fff")
    breaker.postpone(40.0)
    breaker.postpone(35.0)
    assert breaker.acquire(39.9) is None
    breaker.hint(well=False, now=39.9, draw=0.5)
    # As if our own probe had failed: the second opening in a row.
    assert breaker.acquire(99.8) is None
    breaker.hint(well=True, now=99.8, draw=0.5)
    run(breaker, "ss", now=99.8)
    assert breaker.is_closed
