"""Whether to make another attempt beside those under way: gRFC A6's hedging
(https://github.com/grpc/proposal/blob/master/A6-client-retries.md), and the delay after which it is worth one.

A6's five answers, and what becomes of the call:
  OK                      it is the answer; the other attempts are cancelled.
  a non-fatal code        the next attempt is made at once; hedges go on a delay later.
  any other code          it is the answer; the other attempts are cancelled.
  pushback "do not"       no further attempt; those under way may still answer.
  pushback, n ms          the next attempt after n ms; hedges go on a delay later.
When nothing is under way and nothing to come, the last failure is the answer: hedging takes the place of retries.

Beyond A6: a server that surely did not process an attempt is no failure of it, once per call (A6's transparent
retry); a CANCELLED that the caller did not cause is non-fatal (see `retry`); one budget pays for hedges and retries. A
hedge that it does not pay for is left out, and may be asked for again a delay later. An attempt in the place of a
failed one is paid as a retry is, and hedges leave a part to retries.

Whose calls may be hedged is said elsewhere: only what is safe to send twice at the same time.
"""

from __future__ import annotations

from bisect import bisect_left
from math import exp

from mesh.policy import HedgingPolicy
from mesh.resilience.budget import Budget
from mesh.resilience.retry import MAX_ATTEMPTS, Failure, Stop, parse_pushback


class Hedges:
    """The attempts of one hedged call, the first of which is under way. It knows no delays: whoever has it asks `hedge`
    when one is over.
    """

    __slots__ = ("_allowed", "_budget", "_free", "_policy", "_stopped", "attempts", "under_way")

    def __init__(self, policy: HedgingPolicy, budget: Budget, *, allowed: int | None = None) -> None:
        """`allowed`: attempts in all, where they are fewer than the policy's."""
        self._policy = policy
        self._allowed = min(policy.max_attempts, MAX_ATTEMPTS) if allowed is None else allowed
        self._budget = budget
        self._free = 1
        self._stopped = False
        """Whether a server forbade further attempts."""
        self.attempts = 1
        """Attempts that count, the first included; one less is what grpc-previous-rpc-attempts tells."""
        self.under_way = 1
        """Attempts that may still answer, those included that are paid for and about to be made."""

    def __repr__(self) -> str:
        stopped = ", stopped by pushback" if self._stopped else ""
        return f"Hedges({self.attempts} of {self._allowed}, {self.under_way} under way{stopped})"

    @property
    def has_more(self) -> bool:
        """Whether it is worth asking again a delay later."""
        return not self._stopped and self.attempts < self._allowed

    def hedge(self, now: float) -> bool:
        """Decide, a delay after the last attempt began, whether another one is made beside it. If so, make it."""
        if not self.has_more or not self._budget.withdraw_hedge(now):
            return False
        self.attempts += 1
        self.under_way += 1
        return True

    def after(self, failure: Failure, now: float, time_left: float) -> float | Stop | None:
        """Decide about a failed attempt: seconds until the one in its place, which is to be made; None if there is
        none but others are under way; or why the failure is the call's answer.
        """
        self.under_way -= 1
        if failure.committed:
            return Stop.COMMITTED
        free = failure.unsent and failure.pushback is None and self._free
        if free and self._policy.max_attempts > 1 and time_left > 0:
            self._free -= 1
            self.under_way += 1
            return 0.0
        if failure.code not in self._policy.codes and failure.code != "CANCELLED" and not failure.unsent:
            return Stop.CODE
        pause = 0.0
        if failure.pushback is not None:
            asked = parse_pushback(failure.pushback)
            if asked is None:
                self._stopped = True
            else:
                pause = asked
        stop = self._in_its_place(pause, now, time_left)
        if stop is None:
            return pause
        return None if self.under_way else stop

    def _in_its_place(self, pause: float, now: float, time_left: float) -> Stop | None:
        if self._stopped:
            return Stop.PUSHBACK
        if self.attempts >= self._allowed:
            return Stop.ATTEMPTS
        if pause >= time_left:
            return Stop.DEADLINE
        if not self._budget.withdraw(now):
            return Stop.BUDGET
        self.attempts += 1
        self.under_way += 1
        return None


# From 1 ms on, each bound a seventh above the last: the estimate is off by so much at most. 60 bounds reach 3 s.
_BOUNDS = tuple(0.001 * 1.145**n for n in range(60))
_PERCENTILE = 0.95
# Times that have to be known. The weight of one fades to 1/e in 10 s: soon enough to follow a service that changes, and
# late enough to know one that is called three times a second.
_ENOUGH = 20
_LIFE = 10.0
# Worked out anew after so many seconds; it costs some microseconds.
_HOLDS = 0.1


class Tail:
    """The time in which 95 % of a method's attempts are answered, of the last seconds. Not locked.

    An attempt that was given up for a faster one counts with the time that it had: it would have taken longer, and
    leaving it out would make the tail shorter with every hedge, and so hedges more.
    """

    __slots__ = ("_counts", "_known", "_p95", "_until")

    def __init__(self, now: float) -> None:
        self._counts = [0.0] * (len(_BOUNDS) + 1)
        self._p95: float | None = None
        self._until = now
        """When `_p95` is to be worked out anew."""
        self._known = now
        """When the counts were faded last."""

    def __repr__(self) -> str:
        return f"Tail({sum(self._counts):.1f} times, 95 % within {self._p95})"

    def took(self, seconds: float) -> None:
        """Count an attempt that was answered, or given up, after so many seconds."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1

    def p95(self, now: float) -> float | None:
        """Return the seconds; None where too little is known."""
        if now >= self._until:
            self._until = now + _HOLDS
            self._p95 = self._work_out(now)
        return self._p95

    def _work_out(self, now: float) -> float | None:
        kept = exp((self._known - now) / _LIFE)
        self._known = now
        self._counts = counts = [count * kept for count in self._counts]
        total = sum(counts)
        if total < _ENOUGH:
            return None
        beyond = (1 - _PERCENTILE) * total
        at = len(counts) - 1
        while (beyond := beyond - counts[at]) > 0:
            at -= 1
        return _BOUNDS[min(at, len(_BOUNDS) - 1)]
