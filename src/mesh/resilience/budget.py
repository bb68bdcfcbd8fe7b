"""How many attempts beyond the first a client may make, retries and hedges alike, so that a service in trouble is not
buried by them.

Rule: extra attempts are at most `share` of the calls of any `window`. Where calls are so few that `per_second` ·
`window` is more, it is no more than that, and `share` of the calls in the long run.

How it works: calls, extra attempts, and failures that asked for one are counted with a fading memory, a third of the
window long (τ). What may be spent is

    4/5 · share · (calls − failures) − extra attempts

A calm client at R calls a second has 4/5 · share · R · τ saved, which a burst of failures may spend at once: the calls
of a second at an instance that died. Together with what comes in this is below share · R · window in any window. A
call that failed earns nothing, so where every call fails next to nothing is spent: retries do not help there.

Beside it stands a purse for those who call rarely, whose memory would have faded before the next call. It holds a
quarter of `per_second` · `window`, so that a lone failure, or an instance that fails until its breaker opens, is paid.
Only calls that did not fail fill it, with 3/4 · share each: an outage empties it, and it stays empty. Who pays from one
pays from both, so they do not add up. Hedges are a luxury and retries a need: hedges leave them a part.

Prior art: gRFC A6's token bucket is refilled by successes alone, as both of these are, but knows no rate. Finagle's
RetryBudget (20 % + 10/s, deposits live 10 s) has the share; there ten a second come on top at any rate, and
what ten seconds saved may be spent in one: with everything down it made 1.4 × the calls at 100 a second, and went on
with 1.3 ×.
"""

from __future__ import annotations

from math import exp

from mesh.policy import BudgetPolicy

# Calls of a hundredth of the window fade together: no exponential on the way of a call.
_SLICES = 100


class Budget:
    """Counts calls and the extra attempts made for them. Not locked: one loop, or one lock, owns it."""

    __slots__ = (
        "_asked", "_calls", "_earns", "_edge", "_extras", "_fresh", "_life", "_purse", "_purse_size", "_share",
        "_slice",
    )  # fmt: skip

    def __init__(self, policy: BudgetPolicy, now: float) -> None:
        self._slice = policy.window / _SLICES
        self._life = policy.window / 3 - self._slice  # slices make a memory longer, by up to one of them
        self._share = policy.share * 0.8
        self._purse = self._purse_size = policy.per_second * policy.window * 0.25
        self._earns = policy.share * 0.75
        """What a call brings the purse."""
        self._calls = self._asked = self._extras = 0.0
        self._fresh = 0
        """Calls that are not accounted for yet."""
        self._edge = now + self._slice
        """When counts fade next."""

    def __repr__(self) -> str:
        calls = self._calls + self._fresh
        counted = f"{calls:.1f} calls, {self._asked:.1f} failures, {self._extras:.1f} extra attempts"
        return f"Budget({counted}, {self._purse:.1f} in the purse)"

    def deposit(self, now: float) -> None:
        """Count a call. On every call's way, so as cheap as can be."""
        if now >= self._edge:
            self._roll(now)
        self._fresh += 1

    def withdraw(self, now: float) -> bool:
        """Take an extra attempt after a failure, if the budget has it; tell whether it had."""
        has_it = self.balance(now) >= 1
        self._asked += 1
        if not has_it:
            self._purse = max(0.0, self._purse - self._earns)
        return has_it and self._pay()

    def withdraw_hedge(self, now: float, leaving: float = 1 / 3) -> bool:
        """Take an extra attempt that no failure asks for, if the budget has it besides a part that is left to those
        who need it more; tell whether it had.
        """
        return self.balance(now, leaving) >= 1 and self._pay()

    def balance(self, now: float, leaving: float = 0.0) -> float:
        """Extra attempts that may be made now, if such a part (0 to 1) of a full budget is to be left."""
        if now >= self._edge:
            self._roll(now)
        else:
            self._account()
        earned = self._share * max(0.0, self._calls - self._asked)
        return max(earned * (1 - leaving) - self._extras, self._purse - leaving * self._purse_size)

    def _pay(self) -> bool:
        self._extras += 1
        self._purse = max(0.0, self._purse - 1)
        return True

    def _account(self) -> None:
        self._calls += self._fresh
        self._purse = min(self._purse_size, self._purse + self._earns * self._fresh)
        self._fresh = 0

    def _roll(self, now: float) -> None:
        """End the slice, and forget as much as the time since its begin asks for."""
        self._account()
        kept = exp((self._edge - self._slice - now) / self._life)
        self._calls *= kept
        self._asked *= kept
        self._extras *= kept
        self._edge = now + self._slice
