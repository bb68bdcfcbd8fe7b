"""Whether to try again, and when: gRFC A6 (https://github.com/grpc/proposal/blob/master/A6-client-retries.md), made
stricter for methods that are not idempotent.

Rules, in the order they are asked:
  1. The caller has seen part of an answer, or a header came: committed, no further attempt.
  2. The server surely did not process it, for the first time in this call, and nothing was said of pauses (see 6):
     another attempt at once, free of charge (A6, "transparent retries").
  3. The code must be in the policy, or be a CANCELLED that the caller did not cause (a grpc.aio server that stops
     answers calls it has not accepted with it: grpc/grpc #41785), or the attempt has used up the time that the policy
     gives to each.
  4. The request must be safe to send again: the method is idempotent by contract, or the request carries a
     request_id, or the server surely did not process it.
  5. There must be attempts left, at most five in all whatever the policy says, and no more than the call that this
     one is made for has left (`hops`).
  6. "grpc-retry-pushback-ms" in the trailers: negative or unparsable stops; otherwise it is the pause, and the backoff
     begins anew.
  7. The budget must pay.

Left out: A6's token bucket per server (the budget is the better brake). Hedging is `hedge`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from mesh.policy import MethodPolicy, RetryPolicy
from mesh.resilience.budget import Budget

MAX_ATTEMPTS = 5
"""gRFC A6 caps maxAttempts at 5."""
PUSHBACK = "grpc-retry-pushback-ms"
PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"


class Failure(NamedTuple):
    """A failed attempt, as far as the decision needs it.

    unsent: the server surely did not process it.
    committed: a header or a message of the answer has been seen.
    pushback: the trailers' grpc-retry-pushback-ms, or None.
    timed_out: the attempt's own time was over, the call's was not.
    """

    code: str
    unsent: bool = False
    committed: bool = False
    pushback: str | None = None
    timed_out: bool = False


class Stop(enum.Enum):
    """Why there is no further attempt. The values are labels of mesh_client_retries_refused."""

    COMMITTED = "committed"
    CODE = "code"
    NOT_IDEMPOTENT = "not_idempotent"
    ATTEMPTS = "attempts"
    PUSHBACK = "pushback"
    BUDGET = "budget"
    DEADLINE = "deadline"


def backoff(policy: RetryPolicy, retry: int, draw: float) -> float:
    """Return the pause before the retry-th retry (1, 2, …), in seconds: min(initial·multiplier^(n−1), max) × U(0.8,
    1.2) (gRFC A6 with the jitter it was given in 2023). `draw` is from [0, 1).
    """
    try:
        grown = policy.initial_backoff * policy.backoff_multiplier ** (retry - 1)
    except OverflowError:
        grown = policy.max_backoff
    return min(grown, policy.max_backoff) * (0.8 + 0.4 * draw)


def parse_pushback(text: str) -> float | None:
    """Return the seconds that a server asked for, or None where it asked for an end of retries."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        return None
    return int(digits) / 1000


class Retries:
    """The retries of one call: created at its first failure, asked after each failed attempt."""

    __slots__ = ("_allowed", "_budget", "_free", "_policy", "_repeatable", "_step", "attempts")

    def __init__(self, policy: MethodPolicy, budget: Budget, *, repeatable: bool, allowed: int | None = None) -> None:
        """`repeatable`: the request may be sent again whatever happened (idempotent, or with a request_id).
        `allowed`: attempts that count, the first included, where they are fewer than the policy's.
        """
        self._policy = policy.retry
        self._allowed = min(policy.retry.max_attempts, MAX_ATTEMPTS) if allowed is None else allowed
        self._repeatable = repeatable
        self._budget = budget
        self._free = 1
        self._step = 0
        self.attempts = 1
        """Attempts that count, the first included; one less is what grpc-previous-rpc-attempts tells."""

    def after(self, failure: Failure, now: float, draw: float, time_left: float) -> float | Stop:
        """Decide about a failed attempt: seconds to pause before the next one, or why there is none."""
        if failure.committed:
            return Stop.COMMITTED
        if failure.unsent and failure.pushback is None and self._free and self._policy.max_attempts > 1:
            self._free -= 1
            return 0.0 if time_left > 0 else Stop.DEADLINE
        if not (failure.code in self._policy.codes or failure.code == "CANCELLED" or failure.timed_out):
            return Stop.CODE
        if not (self._repeatable or failure.unsent):
            return Stop.NOT_IDEMPOTENT
        if self.attempts >= self._allowed:
            return Stop.ATTEMPTS
        pause = self._pause(failure.pushback, draw)
        if isinstance(pause, Stop):
            return pause
        if pause >= time_left:
            return Stop.DEADLINE
        if not self._budget.withdraw(now):
            return Stop.BUDGET
        self.attempts += 1
        return pause

    def _pause(self, pushback: str | None, draw: float) -> float | Stop:
        if pushback is None:
            self._step += 1
            return backoff(self._policy, self._step, draw)
        asked = parse_pushback(pushback)
        if asked is None:
            return Stop.PUSHBACK
        self._step = 0
        return asked
