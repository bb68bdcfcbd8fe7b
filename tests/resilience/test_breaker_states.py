"""Where a breaker can go from where: resilience4j's table as data, and what leads from one state to another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mesh.policy import BreakerMode, BreakerPolicy
from mesh.resilience.breaker import Breaker, BreakerState, Cause, Permit
from mesh.resilience.outcome import Outcome

POLICY = BreakerPolicy(window=10, minimum_calls=4, consecutive_failures=3, open_for=10.0, half_open_permits=2)

# What resilience4j allows (its enum of state transitions), without those from a state to itself. "x": allowed.
STATES = ("closed", "open", "half_open", "forced_open", "disabled", "metrics_only")
TABLE = """
               closed  open  half_open  forced_open  disabled  metrics_only
closed           -      x        -           x           x          x
open             x      -        x           x           x          x
half_open        x      x        -           x           x          x
forced_open      x      x        x           -           x          x
disabled         x      x        x           x           -          x
metrics_only     x      -        -           x           x          -
"""
ALLOWED = {
    (line.split()[0], to)
    for line in TABLE.strip().splitlines()[1:]
    for to, mark in zip(STATES, line.split()[1:], strict=True)
    if mark == "x"
}


def fail(breaker: Breaker, now: float, times: int = 3) -> None:
    for _ in range(times):
        permit = breaker.acquire(now)
        assert permit is not None
        permit.record(Outcome.FAILURE, now)


def switch(breaker: Breaker, mode: BreakerMode) -> None:
    breaker.apply(POLICY._replace(mode=mode), 0.0)


def to_open(breaker: Breaker) -> None:
    fail(breaker, 0.0)


def to_half_open(breaker: Breaker) -> None:
    to_open(breaker)
    breaker.allow_probes(0.0)


def succeed(breaker: Breaker) -> None:
    for permit in [breaker.acquire(0.0) for _ in range(2)]:
        assert permit is not None
        permit.record(Outcome.SUCCESS, 0.0)


REACH: dict[str, Callable[[Breaker], None]] = {
    "closed": lambda _: None,
    "open": to_open,
    "half_open": to_half_open,
    "forced_open": lambda b: switch(b, BreakerMode.FORCED_OPEN),
    "disabled": lambda b: switch(b, BreakerMode.DISABLED),
    "metrics_only": lambda b: switch(b, BreakerMode.METRICS_ONLY),
}
# What happens to a breaker in some state, and where that leads.
EVENTS: list[tuple[str, Callable[[Breaker], None], str]] = [
    ("closed", to_open, "open"),
    ("open", lambda b: b.allow_probes(0.0), "half_open"),
    ("open", lambda b: b.acquire(12.1), "half_open"),
    ("half_open", lambda b: fail(b, 0.0, 1), "open"),
    ("half_open", succeed, "closed"),
    *[
        (state, REACH[mode.value.lower()], mode.value.lower())
        for state in STATES
        for mode in (BreakerMode.FORCED_OPEN, BreakerMode.DISABLED, BreakerMode.METRICS_ONLY)
        if mode.value.lower() != state
    ],
    *[(s, lambda b: b.apply(POLICY, 0.0), "closed") for s in ("forced_open", "disabled", "metrics_only")],
]


@pytest.mark.parametrize(("begin", "event", "end"), EVENTS, ids=[f"{a} to {c}" for a, _, c in EVENTS])
def test_events_lead_where_the_table_allows(begin: str, event: Callable[[Breaker], None], end: str) -> None:
    breaker = Breaker(POLICY)
    REACH[begin](breaker)
    assert breaker.state == begin
    # A half-open one has none to spare.
    late = [p for p in [breaker.acquire(0.0) if begin != "half_open" else None] if p is not None]
    event(breaker)
    assert breaker.state == end
    assert (begin, end) in ALLOWED
    for permit in late:
        for _ in range(5):
            permit.record(Outcome.FAILURE, 0.0)
        # Late results of another generation change nothing.
        assert breaker.state == end


def test_the_table_is_walked_but_for_what_only_a_person_can_ask_of_resilience4j() -> None:
    by_hand = {
        ("open", "closed"),
        *[(s, t) for s in ("forced_open", "disabled") for t in ("open", "half_open")],
    }
    assert {(begin, end) for begin, _, end in EVENTS} == ALLOWED - by_hand


@pytest.mark.parametrize(
    ("state", "lets_through", "counts", "is_closed"),
    [
        ("closed", True, True, True),
        ("open", False, False, False),
        ("half_open", True, False, False),
        ("forced_open", False, False, False),
        ("disabled", True, False, True),
        ("metrics_only", True, True, True),
    ],
)
def test_what_a_state_means(state: str, lets_through: bool, counts: bool, is_closed: bool) -> None:
    breaker = Breaker(POLICY)
    REACH[state](breaker)
    permit = breaker.acquire(0.0)
    assert (permit is not None) == lets_through
    assert breaker.is_closed == is_closed
    if permit is not None:
        permit.record(Outcome.SUCCESS, 0.0)
    assert breaker.recent(0.0, 100).calls == (1 if counts else 3 if state in ("open", "half_open") else 0)


def test_metrics_only_tells_what_it_would_have_done_and_begins_again() -> None:
    told: list[tuple[str, str | None]] = []
    breaker = Breaker(POLICY._replace(mode=BreakerMode.METRICS_ONLY), lambda s, c: told.append((s.value, c)))
    fail(breaker, 0.0, 7)
    assert told == [("metrics_only", Cause.CONSECUTIVE_FAILURES)] * 2
    assert breaker.recent(0.0, 100).calls == 1


def test_another_threshold_keeps_what_is_known_and_another_window_does_not() -> None:
    breaker = Breaker(POLICY)
    fail(breaker, 0.0, 2)
    breaker.apply(POLICY._replace(consecutive_failures=4), 0.0)
    assert breaker.recent(0.0, 100).failed == 2
    breaker.apply(POLICY._replace(consecutive_failures=4, window=20), 0.0)
    assert breaker.recent(0.0, 100).calls == 0
    fail(breaker, 0.0, 1)
    breaker.apply(POLICY._replace(consecutive_failures=4, window_time=5.0), 0.0)
    assert breaker.recent(0.0, 100).calls == 0


def test_an_open_breaker_stays_open_under_another_threshold_and_not_under_another_mode() -> None:
    breaker = Breaker(POLICY)
    fail(breaker, 0.0)
    breaker.apply(POLICY._replace(failure_rate=0.1), 0.0)
    assert breaker.state is BreakerState.OPEN
    breaker.apply(POLICY._replace(mode=BreakerMode.DISABLED), 0.0)
    breaker.apply(POLICY, 0.0)
    assert breaker.state is BreakerState.CLOSED


class AnyOrder(RuleBasedStateMachine):
    """Calls, results, time, connections and policies in any order."""

    @initialize(mode=st.sampled_from(BreakerMode))
    def begin(self, mode: BreakerMode) -> None:
        self.now = 0.0
        self.told: list[str] = []
        self.policy = POLICY._replace(mode=mode)
        self.breaker = Breaker(self.policy, lambda state, _: self.told.append(state.value))
        self.last = self.breaker.state.value
        self.held: list[tuple[Permit, bool]] = []
        self.probes = 0

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def acquire(self) -> None:
        generation = self.breaker._generation
        permit = self.breaker.acquire(self.now)
        if self.breaker._generation != generation:
            self.probes = 0
        self.went()
        probe = permit is not None and self.breaker.state is BreakerState.HALF_OPEN
        self.probes += probe
        if permit is not None:
            self.held.append((permit, probe))

    @rule(
        data=st.data(),
        outcome=st.sampled_from(Outcome),
        draw=st.floats(0, 0.999),
        took=st.floats(0, 2),
        kind=st.sampled_from([None, "a", "b"]),
    )
    def record(self, data: st.DataObject, outcome: Outcome, draw: float, took: float, kind: str | None) -> None:
        if not self.held:
            return
        permit, probe = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        before, stale = self.breaker.state, permit._generation != self.breaker._generation
        permit.record(outcome, self.now, draw, took, kind)
        assert not stale or self.breaker.state is before
        if probe and not stale and outcome is Outcome.NEUTRAL:
            self.probes -= 1
        if self.breaker.state is BreakerState.OPEN and before is not BreakerState.OPEN:
            assert self.now + 8.0 <= self.breaker.until <= self.now + 300.0 * 1.2
        self.went()

    @rule(mode=st.sampled_from(BreakerMode), window_time=st.sampled_from([0.0, 3.0]))
    def apply(self, mode: BreakerMode, window_time: float) -> None:
        self.policy = POLICY._replace(mode=mode, window_time=window_time)
        self.breaker.apply(self.policy, self.now)
        self.told.append(self.breaker.state.value)
        self.went()

    @rule()
    def connect(self) -> None:
        was = self.breaker.state
        self.breaker.allow_probes(self.now)
        if was is not self.breaker.state:
            self.probes = 0
        self.went()

    @rule(well=st.booleans(), draw=st.floats(0, 0.999))
    def hint(self, well: bool, draw: float) -> None:
        was, openings = self.breaker.state, self.breaker._openings
        self.breaker.hint(well=well, now=self.now, draw=draw)
        if was is BreakerState.OPEN:
            self.probes = 0
            assert self.breaker.state is (BreakerState.HALF_OPEN if well else BreakerState.OPEN)
            assert self.breaker._openings == openings + (not well)
        else:
            assert self.breaker.state is was
        self.went()

    @rule(seconds=st.floats(-10, 20))
    def postpone(self, seconds: float) -> None:
        until, was_open = self.breaker.until, self.breaker.state is BreakerState.OPEN
        self.breaker.postpone(self.now + seconds)
        assert self.breaker.until == (max(until, self.now + seconds) if was_open else until)

    def went(self) -> None:
        now = self.breaker.state.value
        assert now == self.last or (self.last, now) in ALLOWED
        assert now == self.last or self.told[-1] == now
        self.last = now

    @invariant()
    def no_more_probes_than_permits(self) -> None:
        assert self.breaker.state is not BreakerState.HALF_OPEN or 0 <= self.probes <= POLICY.half_open_permits

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.breaker.recent(self.now, 100)
        assert 0 <= counts.failed <= counts.calls
        assert 0 <= counts.slow <= counts.timed <= counts.calls

    @invariant()
    def the_mode_is_kept(self) -> None:
        forced = {
            BreakerMode.FORCED_OPEN: {"forced_open"},
            BreakerMode.DISABLED: {"disabled"},
            BreakerMode.METRICS_ONLY: {"metrics_only"},
            BreakerMode.AUTOMATIC: {"closed", "open", "half_open"},
        }
        assert self.breaker.state.value in forced[self.policy.mode]


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
