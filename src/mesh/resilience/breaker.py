"""When to leave an endpoint alone for a while: one breaker per endpoint.

Rules:
  closed     every call is let through. `consecutive_failures` in a row, or a share of `failure_rate` among the last
             `window` calls (once there were `minimum_calls`), opens it.
  open       no call for `open_for` seconds, jittered. Then half open.
  half open  `half_open_permits` calls are let through. All of them succeed: closed. One fails: open again. One that
             proves nothing gives its permit back.

How it works: `acquire` hands out a permit, and the result is given to the permit. A permit remembers the generation
it came from; each change of state begins a new one, so a late result of an old generation changes nothing. All calls
of a closed
generation share one permit object: the happy path allocates nothing.

Left out: slow calls (they will be judged by the balancer, which knows latencies) and windows by time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from mesh.policy import BreakerPolicy
from mesh.resilience.outcome import Outcome


class BreakerState(enum.StrEnum):
    """Where a breaker is."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# Instances that failed together must not be asked again together.
_JITTER = 0.2


class Permit:
    """Leave to make a call. Give it exactly one result."""

    __slots__ = ("_breaker", "_generation")

    def __init__(self, breaker: Breaker, generation: int) -> None:
        self._breaker = breaker
        self._generation = generation

    def record(self, outcome: Outcome, now: float, draw: float = 0.5) -> None:
        """Tell how the call went. `draw` from [0, 1) spreads the time that an opening breaker stays open."""
        breaker = self._breaker
        if self._generation == breaker._generation:
            breaker._record(outcome, now, draw)


class Breaker:
    """The state of one endpoint, as told by its calls. Not locked: one loop, or one lock, owns it.

    `on_change` is called with the new state after it has settled.
    """

    __slots__ = (
        "_closed_permit", "_failures", "_filled", "_generation", "_in_row", "_next", "_on_change", "_open_until",
        "_policy", "_probes_left", "_probes_passed", "_ring", "state",
    )  # fmt: skip

    def __init__(self, policy: BreakerPolicy, on_change: Callable[[BreakerState], None] | None = None) -> None:
        self._policy = policy
        self._on_change = on_change
        self._generation = 0
        self._open_until = 0.0
        self._ring = bytearray(policy.window)
        """The last results, 1 for a failure; `_next` is where the next one goes."""
        self._next = self._filled = self._failures = self._in_row = 0
        self._probes_left = self._probes_passed = 0
        self._begin_closed()

    def __repr__(self) -> str:
        seen = f"{self._failures}/{self._filled} failed, {self._in_row} in a row"
        return f"Breaker({self.state.value}, generation {self._generation}, {seen})"

    def acquire(self, now: float) -> Permit | None:
        """Return a permit, or None while the endpoint is to be left alone."""
        permit = self._closed_permit
        if permit is not None:
            return permit
        if self.state is BreakerState.OPEN and now >= self._open_until:
            self._begin_half_open()
        if self.state is BreakerState.HALF_OPEN and self._probes_left > 0:
            self._probes_left -= 1
            return Permit(self, self._generation)
        return None

    def allow_probes(self) -> None:
        """End the wait of an open breaker: something else (a fresh connection) says that the endpoint may be back."""
        if self.state is BreakerState.OPEN:
            self._begin_half_open()

    @property
    def is_closed(self) -> bool:
        """Whether calls pass freely."""
        return self._closed_permit is not None

    def _record(self, outcome: Outcome, now: float, draw: float) -> None:
        if self._closed_permit is not None:
            self._record_closed(outcome, now, draw)
        elif self.state is BreakerState.HALF_OPEN:
            self._record_probe(outcome, now, draw)

    def _record_closed(self, outcome: Outcome, now: float, draw: float) -> None:
        if outcome is Outcome.NEUTRAL:
            return
        failed = outcome is Outcome.FAILURE
        self._in_row = self._in_row + 1 if failed else 0
        policy, at = self._policy, self._next
        if self._filled == policy.window:
            self._failures -= self._ring[at]
        else:
            self._filled += 1
        self._ring[at] = failed
        self._next = at + 1 if at + 1 < policy.window else 0
        if not failed:
            return
        self._failures += 1
        rate_says_so = self._filled >= policy.minimum_calls and self._failures >= policy.failure_rate * self._filled
        if rate_says_so or self._in_row >= policy.consecutive_failures:
            self._begin_open(now, draw)

    def _record_probe(self, outcome: Outcome, now: float, draw: float) -> None:
        if outcome is Outcome.FAILURE:
            self._begin_open(now, draw)
        elif outcome is Outcome.NEUTRAL:
            self._probes_left += 1
        else:
            self._probes_passed += 1
            if self._probes_passed >= self._policy.half_open_permits:
                self._begin_closed()
                self._tell()

    def _begin_closed(self) -> None:
        self._generation += 1
        self.state = BreakerState.CLOSED
        self._ring = bytearray(self._policy.window)
        self._next = self._filled = self._failures = self._in_row = 0
        self._probes_left = self._probes_passed = 0
        self._closed_permit: Permit | None = Permit(self, self._generation)

    def _begin_open(self, now: float, draw: float) -> None:
        self._generation += 1
        self.state = BreakerState.OPEN
        self._closed_permit = None
        self._open_until = now + self._policy.open_for * (1 - _JITTER + 2 * _JITTER * draw)
        self._tell()

    def _begin_half_open(self) -> None:
        self._generation += 1
        self.state = BreakerState.HALF_OPEN
        self._probes_left, self._probes_passed = self._policy.half_open_permits, 0
        self._tell()

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change(self.state)


def is_panic(ejected: int, of: int) -> bool:
    """Tell whether ejection must be ignored: when more than half of the endpoints are out, the rest would drown, and
    what is broken is more likely something that they all share (Envoy's panic threshold).
    """
    return 2 * ejected > of
