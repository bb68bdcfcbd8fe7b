"""What a contract asks for: how calls to a service or a method are treated. Values, with defaults and their sources.

How they are read from descriptors is `mesh.contract.policies`; overrides from the store are merged there too. They are
named tuples: Python would write and compile the methods of frozen dataclasses anew in every process that starts.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class RetryPolicy(NamedTuple):
    """Attempts after a failure (gRFC A6). Durations in seconds."""

    max_attempts: int = 4
    """The first one counted; gRFC A6 caps it at 5."""
    initial_backoff: float = 0.025
    max_backoff: float = 1.0
    backoff_multiplier: float = 2.0
    codes: frozenset[str] = frozenset({"UNAVAILABLE"})
    """Worth another attempt (AIP-194)."""
    attempt_timeout: float = 0.0
    """Seconds that one attempt may take of a call that may be sent again and has one response; 0 is no limit."""


class HedgingPolicy(NamedTuple):
    """Attempts beside one that takes long (gRFC A6); in the place of retries where it is switched on."""

    max_attempts: int = 1
    """The first one counted, at most 5; 1 is no hedging."""
    delay: float = 0.1
    """Seconds without an answer after which another attempt is made."""
    codes: frozenset[str] = frozenset({"UNAVAILABLE"})
    """After these another attempt is made at once; any other ends the call."""
    follow_p95: bool = True
    """The delay is the time in which 95 % of the method's attempts are answered, if that is shorter."""


class BreakerMode(enum.StrEnum):
    """Who decides about a breaker (resilience4j's states that no call changes)."""

    AUTOMATIC = "AUTOMATIC"
    """The rules."""
    FORCED_OPEN = "FORCED_OPEN"
    """An operator: no call is let through."""
    DISABLED = "DISABLED"
    """Nobody: every call is let through, nothing is counted."""
    METRICS_ONLY = "METRICS_ONLY"
    """Nobody, but what the rules would have done is told."""


class BreakerPolicy(NamedTuple):
    """When an instance is left alone (resilience4j's words; consecutive failures and outliers are Envoy's)."""

    failure_rate: float = 0.5
    window: int = 100
    """Calls."""
    minimum_calls: int = 20
    consecutive_failures: int = 5
    open_for: float = 30.0
    """Seconds, jittered when it opens, and as many more with every time that it opens again."""
    half_open_permits: int = 3
    window_time: float = 0.0
    """Seconds looked at instead of `window` calls; 0 is calls."""
    slow_call_duration: float = 0.0
    """Seconds beyond which a call is slow; 0: by `slow_call_factor`."""
    slow_call_rate: float = 0.5
    slow_call_factor: float = 5.0
    """So many times slower than the same method at other instances is slow; 0 is never."""
    outlier_failure_rate: float = 0.15
    """Enough where other instances fail much less; 0 is never."""
    max_open_for: float = 300.0
    """Seconds (Envoy's max_ejection_time)."""
    mode: BreakerMode = BreakerMode.AUTOMATIC
    fleet_probe: bool = False
    """One client of all probes, the others wait for what it finds."""


class Balancer(enum.StrEnum):
    """How the instance of an attempt is chosen."""

    ROUND_ROBIN = "ROUND_ROBIN"
    """Each in turn."""
    LEAST_LOADED = "LEAST_LOADED"
    """The better of two, by latency and calls under way (P2C with Peak-EWMA, as Finagle and Linkerd)."""
    WEIGHTED = "WEIGHTED"
    """In turn, some more often: by the instances' weights or their load reports (gRFC A58)."""
    CONSISTENT_HASH = "CONSISTENT_HASH"
    """Calls with one key to one instance."""


class BalancerPolicy(NamedTuple):
    """Which instances a client calls. docs/balancing.md says how to choose."""

    kind: Balancer = Balancer.ROUND_ROBIN
    hash_field: str = ""
    """Field of the request that is the key, e.g. "user.id"; per method."""
    hash_metadata: str = ""
    """Metadata entry that is the key, where the request has none."""
    prefer_zone: bool = False
    """Stay in the caller's zone, as far as its instances can bear it."""
    slow_start: float = 0.0
    """Seconds in which a new instance rises to its full share; 0 is at once."""
    subset_size: int = 0
    """Instances that one client connects to; 0 is all."""
    load_reports: bool = False
    """Servers report their load with their answers, and WEIGHTED goes by it."""


class MethodPolicy(NamedTuple):
    """How the calls of one method are treated."""

    timeout: float = 10.0
    """Seconds that a call may take in all when its caller names no deadline."""
    idempotent: bool = False
    """By its contract (idempotency_level): may be sent again whatever happened to the attempt before."""
    has_request_id: bool = False
    """The request has a `request_id` field; a call that fills it may be sent again."""
    retry: RetryPolicy = RetryPolicy()
    hedging: HedgingPolicy = HedgingPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    balancer: BalancerPolicy = BalancerPolicy()


DEFAULT_POLICY = MethodPolicy()


class BudgetPolicy(NamedTuple):
    """Attempts beyond the first that a client may make: over a window, a share of its calls. Where so many per second
    are more, it may save up for as many at most (`mesh.resilience.budget`).
    """

    share: float = 0.2
    per_second: float = 2.0
    window: float = 10.0
    """Seconds."""
