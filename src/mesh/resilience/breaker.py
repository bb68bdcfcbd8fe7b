"""When to leave an endpoint alone for a while: one breaker per endpoint.

States, and what leads from one to another (resilience4j's; tests/resilience/test_breaker_states.py holds its table):
  closed        every call is let through, and counted. Opens by any of the rules below.
  open          no call for `open_for` seconds times the openings in a row, at most `max_open_for`, jittered. Then half
                open.
  half open     `half_open_permits` calls are let through. All of them succeed in time: closed. One fails, or is slow:
                open again. One that proves nothing gives its permit back. If after `open_for` there is no verdict, as
                many more are let through: streams may take for ever.
  forced open, disabled, metrics only   by policy alone, until the policy says otherwise. Forced open lets nothing
                through; the others everything, and metrics only tells what the rules would have done.

Rules, over the last `window` calls or `window_time` seconds:
  1. `consecutive_failures` in a row.
  2. A share of `failure_rate` failed, of `minimum_calls` or more.
  3. A share of `slow_call_rate` took longer than `slow_call_duration`, if the policy names one.
  4. Of the last 40 calls `outlier_failure_rate` failed, and the other endpoints fail far less (see `peers`).
  5. Without a `slow_call_duration`: of the last 40, `slow_call_rate` were slow by what is typical of all, and the
     others' were so far less often.

How it works: `acquire` hands out a permit, and the result is given to the permit. A permit remembers the generation
it came from; each change of state begins a new one, so a late result of an old generation changes nothing. All calls
of a closed generation share one permit object, and nothing is compared before a call has failed or taken 0.1 s: the
happy path allocates nothing.

An opening is forgotten for each `open_for` that the breaker is closed. A fresh connection ends the wait of an open
breaker, the first time in a row at once and then a second later each time, so that a path that flaps does not.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from math import inf

from mesh.policy import BreakerMode, BreakerPolicy
from mesh.resilience.outcome import Outcome
from mesh.resilience.pace import Pace
from mesh.resilience.peers import Peers, stands_out
from mesh.resilience.windows import FAILED, SLOW, Counts, CountWindow, TimeWindow, Window


class BreakerState(enum.StrEnum):
    """Where a breaker is."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


class Cause(enum.StrEnum):
    """Why a breaker opened."""

    CONSECUTIVE_FAILURES = "consecutive_failures"
    FAILURE_RATE = "failure_rate"
    SLOW_CALL_RATE = "slow_call_rate"
    FAILURE_OUTLIER = "failure_outlier"
    SLOW_OUTLIER = "slow_outlier"
    PROBE = "probe"
    """A probe of a half-open one went wrong."""


OnChange = Callable[[BreakerState, Cause | None], None]
"""Hears the new state after it has settled, and why, where a rule led to it."""

_STATES = {
    BreakerMode.AUTOMATIC: BreakerState.CLOSED,
    BreakerMode.FORCED_OPEN: BreakerState.FORCED_OPEN,
    BreakerMode.DISABLED: BreakerState.DISABLED,
    BreakerMode.METRICS_ONLY: BreakerState.METRICS_ONLY,
}
_SUCCESS, _FAILURE, _NEUTRAL = Outcome.SUCCESS, Outcome.FAILURE, Outcome.NEUTRAL

# Instances that failed together must not be asked again together.
_JITTER = 0.2
# Calls that are compared with others'. At 13 calls a second half of them are over after 1.5 s; with the whole window it
# would take three times as long, with fewer a fifth of failures could not be told from chance.
_RECENT = 40
# Failures are compared with so many of each other endpoint: what is usual has been so for longer, and with fewer one
# could not be sure of 7 of 40.
_BEFORE = 100
# A call that took less is never slow compared with others: pauses of the garbage collector, of a busy machine, and
# another continent are all below. A human does not notice it.
_NOTICEABLE = 0.1
# Seconds between two comparisons. In an outage every call fails, at thousands a second.
_PAUSE = 0.05
# Seconds that the wait after a fresh connection grows by, with each opening in a row.
_RECONNECTED = 1.0


class Permit:
    """Leave to make a call. Give it exactly one result."""

    __slots__ = ("_breaker", "_generation")

    def __init__(self, breaker: Breaker, generation: int) -> None:
        self._breaker = breaker
        self._generation = generation

    def record(
        self, outcome: Outcome, now: float, draw: float = 0.5, took: float = 0.0, kind: str | None = None
    ) -> None:
        """Tell how the call went.

        draw: from [0, 1), spreads the time that an opening breaker stays open.
        took, kind: how long it took, and what is to be compared with it: the method. Infinity where it was given up
        because an attempt that began later, elsewhere, was answered first (a hedge): slow beside that one, however long
        it would have taken. No kind where the time says nothing of the endpoint: a stream lasts as long as its caller
        wants.
        """
        breaker = self._breaker
        if self._generation == breaker._generation:
            if breaker._closed_permit is not None:
                breaker._record_closed(outcome, now, draw, took, kind)
            else:
                breaker._record_probe(outcome, now, draw, took, kind)


class Breaker:
    """The state of one endpoint, as told by its calls. Not locked: one loop, or one lock, owns it."""

    __slots__ = (
        "_closed_at", "_closed_permit", "_compare_at", "_generation", "_in_row", "_minimum", "_on_change", "_openings",
        "_pace", "_peers", "_policy", "_probes_left", "_probes_passed", "_slow_from", "_window", "heard", "state",
        "until",
    )  # fmt: skip

    def __init__(self, policy: BreakerPolicy, on_change: OnChange | None = None, peers: Peers | None = None) -> None:
        """peers: the other endpoints, of which somebody else keeps the list; without them nothing is compared."""
        self._on_change = on_change
        self._peers = peers
        self._generation = self._openings = 0
        self.until = 0.0
        """When an open breaker becomes half open, and a half-open one lets more probes through."""
        self._closed_at = self._compare_at = 0.0
        self.heard = -inf
        """When the last call ended that says something."""
        self._closed_permit: Permit | None = None
        self._begin(policy)

    def __repr__(self) -> str:
        seen = f"{self._window.failed} failed and {self._window.slow} slow of {self._window.calls}"
        return f"Breaker({self.state.value}, generation {self._generation}, {seen}, {self._in_row} failed in a row)"

    def acquire(self, now: float) -> Permit | None:
        """Return a permit, or None while the endpoint is to be left alone."""
        permit = self._closed_permit
        if permit is not None:
            return permit
        if self.state is BreakerState.OPEN and now >= self.until:
            self._begin_half_open(now)
        if self.state is not BreakerState.HALF_OPEN:
            return None
        if not self._probes_left and now >= self.until:
            self._allow_more(now)
        if not self._probes_left:
            return None
        self._probes_left -= 1
        return Permit(self, self._generation)

    def allow_probes(self, now: float) -> None:
        """End the wait of an open breaker: something else (a fresh connection) says that the endpoint may be back."""
        if self.state is BreakerState.OPEN:
            self.until = min(self.until, now + (self._openings - 1) * _RECONNECTED)
            if now >= self.until:
                self._begin_half_open(now)

    def postpone(self, until: float) -> None:
        """Make an open breaker wait until then, or longer: somebody else finds out how the endpoint is."""
        if self.state is BreakerState.OPEN:
            self.until = max(self.until, until)

    def hint(self, *, well: bool, now: float, draw: float) -> None:
        """Take over what somebody else found of the endpoint: an open breaker lets probes through, or waits again."""
        if self.state is BreakerState.OPEN:
            if well:
                self._begin_half_open(now)
            else:
                self._begin_open(Cause.PROBE, now, draw)

    def apply(self, policy: BreakerPolicy, now: float) -> None:
        """Go by another policy. Another mode or window begins from nothing; nobody is told, whoever applies knows."""
        before = self._policy
        if policy.mode is not before.mode:
            self._closed_at, self._openings = now, 0
            self._begin(policy)
            return
        self._take(policy)
        if (policy.window, policy.window_time) != (before.window, before.window_time):
            self._forget()

    @property
    def is_closed(self) -> bool:
        """Whether calls pass freely."""
        return self._closed_permit is not None

    def recent(self, now: float, calls: int) -> Counts:
        """Return how the last so many calls went; all of a window of time."""
        return self._window.recent(calls, now)

    def typical(self, kind: str) -> float | None:
        """Return how many seconds a good call of this kind mostly takes; None if there were too few."""
        return self._pace.typical(kind)

    # -- results

    def _record_closed(self, outcome: Outcome, now: float, draw: float, took: float, kind: str | None) -> None:
        mark = 0
        if kind is not None and took > self._slow_from and self._is_slow(kind, took, now):
            mark = SLOW
        if outcome is _SUCCESS:
            self._in_row = 0
            if kind is not None:
                self._pace.took(took, kind)
        elif outcome is _FAILURE:
            self._in_row += 1
            mark |= FAILED
        elif not mark:
            return  # It proves nothing; one that was cut short when it was slow already proves that.
        self.heard = now
        self._window.add(mark, now)
        if mark and (cause := self._cause(now)) is not None:
            self._exceeded(cause, now, draw)

    def _record_probe(self, outcome: Outcome, now: float, draw: float, took: float, kind: str | None) -> None:
        slow = kind is not None and took > self._slow_from and self._is_slow(kind, took, now)
        if outcome is _FAILURE or slow:
            self._begin_open(Cause.PROBE, now, draw)
        elif outcome is _NEUTRAL:
            self._probes_left += 1
        else:
            self._probes_passed += 1
            if self._probes_passed >= self._policy.half_open_permits:
                self._begin(self._policy)
                self._closed_at = now
                self._tell()

    def _is_slow(self, kind: str, took: float, now: float) -> bool:
        """Tell whether a call is slow that took longer than `_slow_from`."""
        policy, peers = self._policy, self._peers
        if policy.slow_call_duration or peers is None:
            return took < inf
        # While it is closed, this endpoint is one of them.
        return took > policy.slow_call_factor * peers.typical(kind, now, 2 if self.is_closed else 1)

    def _cause(self, now: float) -> Cause | None:
        policy, window = self._policy, self._window
        if self._in_row >= policy.consecutive_failures:
            return Cause.CONSECUTIVE_FAILURES
        if window.calls < self._minimum:
            return None
        if window.failed >= policy.failure_rate * window.calls:
            return Cause.FAILURE_RATE
        if policy.slow_call_duration and window.slow >= policy.slow_call_rate * window.calls:
            return Cause.SLOW_CALL_RATE
        return self._compare(self._peers, now) if self._peers is not None else None

    def _compare(self, peers: Peers, now: float) -> Cause | None:
        policy, mine = self._policy, self.recent(now, max(_RECENT, self._minimum))
        fails = 0 < policy.outlier_failure_rate * mine.calls <= mine.failed
        slow = not policy.slow_call_duration and 0 < policy.slow_call_rate * mine.timed <= mine.slow
        if not (fails or slow) or now < self._compare_at:
            return None
        self._compare_at = now + _PAUSE
        if not peers.may_eject(self):
            return None
        if fails:
            others = peers.others(self, now, _BEFORE)
            if others.calls >= self._minimum and stands_out(mine.failed, mine.calls, others.failed, others.calls):
                return Cause.FAILURE_OUTLIER
        # What is slow changes with the times, so calls of the same time are compared.
        others = peers.others(self, now, _RECENT)
        if slow and others.timed >= self._minimum and stands_out(mine.slow, mine.timed, others.slow, others.timed):
            return Cause.SLOW_OUTLIER
        return None

    # -- changes

    def _exceeded(self, cause: Cause, now: float, draw: float) -> None:
        if self.state is BreakerState.METRICS_ONLY:
            self._forget()
            self._tell(cause)
        else:
            self._begin_open(cause, now, draw)

    def _begin(self, policy: BreakerPolicy) -> None:
        """Go to the state of the policy's mode, knowing nothing."""
        self._generation += 1
        self.state = _STATES[policy.mode]
        self._take(policy)
        self._forget()
        self._probes_left = self._probes_passed = 0
        self._closed_permit = None
        if self.state is not BreakerState.FORCED_OPEN:
            # A disabled breaker's permit is of no generation: what it is told changes nothing.
            self._closed_permit = Permit(self, -1 if self.state is BreakerState.DISABLED else self._generation)

    def _take(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        # Over a window of fewer calls the rate could never be known (resilience4j does the same).
        self._minimum = policy.minimum_calls if policy.window_time else min(policy.minimum_calls, policy.window)
        relative = _NOTICEABLE if policy.slow_call_factor and self._peers is not None else inf
        self._slow_from = policy.slow_call_duration or relative

    def _forget(self) -> None:
        policy = self._policy
        self._window: Window = TimeWindow(policy.window_time) if policy.window_time else CountWindow(policy.window)
        self._in_row = 0
        self._pace = Pace()

    def _begin_open(self, cause: Cause, now: float, draw: float) -> None:
        policy = self._policy
        if self._closed_permit is not None:
            self._openings = max(0, self._openings - int((now - self._closed_at) / policy.open_for))
        self._openings += 1
        self._generation += 1
        self.state = BreakerState.OPEN
        self._closed_permit = None
        wait = min(policy.open_for * self._openings, policy.max_open_for)
        self.until = now + wait * (1 - _JITTER + 2 * _JITTER * draw)
        self._tell(cause)

    def _begin_half_open(self, now: float) -> None:
        self.state = BreakerState.HALF_OPEN
        self._allow_more(now)
        self._tell()

    def _allow_more(self, now: float) -> None:
        self._generation += 1
        self._probes_left, self._probes_passed = self._policy.half_open_permits, 0
        self.until = now + self._policy.open_for

    def _tell(self, cause: Cause | None = None) -> None:
        if self._on_change is not None:
            self._on_change(self.state, cause)


def is_panic(ejected: int, of: int) -> bool:
    """Tell whether ejection must be ignored: when more than half of the endpoints are out, the rest would drown, and
    what is broken is more likely something that they all share (Envoy's panic threshold).
    """
    return 2 * ejected > of
