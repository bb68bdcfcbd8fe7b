"""How an ended grpc call, asyncio or blocking, on a pool or on a plain channel, becomes a `Failure` to decide about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh.contract.policies import policies_of
from mesh.policy import DEFAULT_POLICY, MethodPolicy
from mesh.resilience.outcome import Outcome, outcome_of
from mesh.resilience.retry import PUSHBACK, Failure

Pairs = Iterable[tuple[str, str | bytes]]

PATIENCE = 0.5
"""Seconds. A deadline shorter than that says more about the caller than about the endpoint that missed it."""


def failure_of(code: str, trailing: Pairs, *, unsent: bool, committed: bool, timed_out: bool = False) -> Failure:
    """Return what the retry rules need to know of a failed attempt."""
    return Failure(code, unsent, committed, _pushback(trailing), timed_out)


def is_repeatable(policy: MethodPolicy, request: object) -> bool:
    """Tell whether this request may be sent again whatever happened to it: by contract, or by its request_id."""
    return policy.idempotent or (policy.has_request_id and bool(getattr(request, "request_id", "")))


def verdict_of(code: str, took: float) -> Outcome:
    """Return what a call of so many seconds on a plain channel says of its target."""
    if code == "DEADLINE_EXCEEDED" and took < PATIENCE:
        return Outcome.NEUTRAL
    return outcome_of(code)


class Policies:
    """Policies by path, of any service whose stubs are imported; looked up once per method."""

    def __init__(self, given: Mapping[str, MethodPolicy] | None = None) -> None:
        self._known: dict[str, MethodPolicy] = dict(given or {})

    def of(self, path: str) -> MethodPolicy:
        """Return the policy of "/pkg.Service/Method"."""
        policy = self._known.get(path)
        if policy is None:
            service = path.lstrip("/").rpartition("/")[0]
            policy = self._known[path] = policies_of(service).get(path, DEFAULT_POLICY)
        return policy


def _pushback(trailing: Pairs) -> str | None:
    for key, value in trailing:
        if key == PUSHBACK:
            return value if isinstance(value, str) else value.decode("latin-1")
    return None
