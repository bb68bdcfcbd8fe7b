"""What a contract asks for: how calls to a service or a method are treated. Values, with defaults and their sources.

How they are read from descriptors is `mesh.contract.policies`; overrides from the store are merged there too.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts after a failure (gRFC A6). Durations in seconds."""

    max_attempts: int = 4
    """The first one counted; gRFC A6 caps it at 5."""
    initial_backoff: float = 0.025
    max_backoff: float = 1.0
    backoff_multiplier: float = 2.0
    codes: frozenset[str] = frozenset({"UNAVAILABLE"})
    """Worth another attempt (AIP-194)."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When an instance is left alone (resilience4j's words; consecutive failures are Envoy's)."""

    failure_rate: float = 0.5
    window: int = 100
    """Calls."""
    minimum_calls: int = 20
    consecutive_failures: int = 5
    open_for: float = 30.0
    """Seconds, jittered when it opens."""
    half_open_permits: int = 3


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """How the calls of one method are treated."""

    timeout: float = 10.0
    """Seconds that a call may take in all when its caller names no deadline."""
    idempotent: bool = False
    """By its contract (idempotency_level): may be sent again whatever happened to the attempt before."""
    has_request_id: bool = False
    """The request has a `request_id` field; a call that fills it may be sent again."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)


DEFAULT_POLICY = MethodPolicy()


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """Attempts beyond the first that a client may make (Finagle): a share of its calls plus a floor, over a window."""

    share: float = 0.2
    per_second: float = 10.0
    window: float = 10.0
    """Seconds that a deposit lives."""
