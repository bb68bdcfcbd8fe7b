"""What is simulated: servers, clients, what befalls them, and the ways in which it is tried. Values only; how they are
read from a file is `reading`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from mesh.policy import BalancerPolicy, BreakerPolicy, BudgetPolicy, RetryPolicy
from mesh.resilience.limiter import LimitPolicy


class Spread(enum.StrEnum):
    """How service times are spread about their middle."""

    ALWAYS = "always"
    """All the same."""
    EXPONENTIAL = "exponential"
    """Memoryless: the mean is all there is to know."""
    LOGNORMAL = "lognormal"
    """A body and a long tail: most services, given by p50 and p99."""


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """How long a server works on a call, in seconds."""

    spread: Spread
    middle: float
    """The mean; for LOGNORMAL the median."""
    sigma: float = 0.0
    """Of a LOGNORMAL's logarithm."""
    mean: float = 0.0


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers, all alike."""

    count: int
    service_time: ServiceTime
    concurrency: int = 10
    """Calls that one works on at once."""
    queue: int = 100
    """Calls that wait for their turn; the next is refused with RESOURCE_EXHAUSTED."""
    serves_abandoned: bool = False
    """Work goes on, and begins, for callers that have given up (threads, databases)."""

    limit: LimitPolicy | None = None
    """Let in no more than they can do without getting slower; None: whoever comes."""

    @property
    def capacity(self) -> float:
        """Calls per second that all of them can answer."""
        return self.count * self.concurrency / self.service_time.mean


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients, all alike: each is a channel with breakers and a budget of its own."""

    count: int
    rate: float
    """Calls per second of each, at random times and whatever became of those before (an open loop)."""
    deadline: float = 1.0
    attempt_timeout: float | None = None
    """Seconds after which an attempt is given up for another one."""
    idempotent: bool = True
    balancer: BalancerPolicy = field(default_factory=BalancerPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    budget: BudgetPolicy | None = field(default_factory=BudgetPolicy)
    """None: retries cost nothing."""
    breaker: BreakerPolicy | None = field(default_factory=BreakerPolicy)
    """None: no endpoint is ever left alone."""


class FaultKind(enum.StrEnum):
    """What can befall servers, and once (BURST) clients."""

    CRASH = "crash"
    """Connections break; nobody listens until it is over."""
    HANG = "hang"
    """No answer to anything, connections stand (SIGSTOP)."""
    SLOW = "slow"
    """Service times are multiplied by `factor`."""
    ERRORS = "errors"
    """A share of the calls, `rate`, is answered with `code` at once."""
    BURST = "burst"
    """Clients make `factor` times their calls."""
    ROLLING_RESTART = "rolling_restart"
    """One server after the other says that it leaves, drains, is down, and comes back."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that begins and ends."""

    kind: FaultKind
    at: float
    length: float
    """For a ROLLING_RESTART: of all of it, worked out from its parts."""
    servers: int = 0
    """How many are concerned: the first so many."""
    factor: float = 1.0
    rate: float = 1.0
    code: str = "UNAVAILABLE"
    drain: float = 0.0
    down: float = 0.0

    @property
    def until(self) -> float:
        """When it is over."""
        return self.at + self.length


@dataclass(frozen=True, slots=True)
class Scenario:
    """A world, and what happens in it."""

    duration: float
    servers: Servers
    clients: Clients
    faults: Sequence[Fault] = ()
    seed: int = 1
    name: str = ""
    """Of the variant, where there are several."""
    about: str = ""

    @property
    def offered(self) -> float:
        """Calls per second that all clients make in ordinary times."""
        return self.clients.count * self.clients.rate
