"""How many attempts beyond the first a client may make: a share of its calls plus a floor, so that a service in
trouble is not buried by retries. Finagle's RetryBudget (20 % + 10/s, deposits live 10 s), kept as counts per slice
of the window.
"""

from __future__ import annotations

from mesh.policy import BudgetPolicy

# Slices of the window. More are smoother and cost more per roll; ten forget a tenth of the window at a time.
_SLICES = 10


class Budget:
    """Counts calls and the extra attempts made for them. Not locked: one loop, or one lock, owns it."""

    __slots__ = ("_calls", "_edge", "_extras", "_policy", "_slice")

    def __init__(self, policy: BudgetPolicy, now: float) -> None:
        self._policy = policy
        self._slice = policy.window / _SLICES
        self._calls = [0] * _SLICES
        self._extras = [0] * _SLICES
        self._edge = now + self._slice
        """When the present slice, the last of the lists, ends."""

    def __repr__(self) -> str:
        return f"Budget({sum(self._calls)} calls, {sum(self._extras)} extra attempts)"

    def deposit(self, now: float) -> None:
        """Count a call. On every call's way, so as cheap as can be."""
        if now >= self._edge:
            self._roll(now)
        self._calls[-1] += 1

    def withdraw(self, now: float) -> bool:
        """Take one extra attempt if the budget has it; tell whether it had."""
        if self.balance(now) < 1:
            return False
        self._extras[-1] += 1
        return True

    def balance(self, now: float) -> float:
        """Extra attempts that may be made now."""
        if now >= self._edge:
            self._roll(now)
        policy = self._policy
        return policy.share * sum(self._calls) + policy.per_second * policy.window - sum(self._extras)

    def _roll(self, now: float) -> None:
        passed = int((now - self._edge) / self._slice) + 1
        self._edge += passed * self._slice
        kept = min(passed, _SLICES)
        self._calls = self._calls[kept:] + [0] * kept
        self._extras = self._extras[kept:] + [0] * kept
