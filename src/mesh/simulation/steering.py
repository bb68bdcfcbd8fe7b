"""Who is called next, as a mesh client decides it: those connected, in the balancer's order, those not tried yet first,
none whose breaker says no, and ejection ignored where it says no for more than half (see mesh.client.roster).

Breakers are made when an endpoint is called for the first time: a thousand clients of a hundred servers have 100,000.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from mesh.balancing.round_robin import RoundRobin
from mesh.policy import BreakerPolicy
from mesh.resilience.breaker import Breaker, BreakerState, Permit, is_panic
from mesh.resilience.outcome import Outcome
from mesh.simulation.server import Server

# Handed out where no breaker is asked: nothing that it is told can change one.
_UNCOUNTED = Permit(Breaker(BreakerPolicy()), -1)


class Endpoint:
    """A server as one client sees it."""

    __slots__ = ("_breaker", "_on_change", "_policy", "connected", "server", "wanted")

    def __init__(self, server: Server, policy: BreakerPolicy | None, on_change: Callable[[BreakerState], None]) -> None:
        self.server = server
        self.connected = True
        self.wanted = True
        """It has not said that it is leaving."""
        self._policy = policy
        self._on_change = on_change
        self._breaker: Breaker | None = None

    def acquire(self, now: float) -> Permit | None:
        """Return leave to call it, or None while it is to be left alone."""
        if self._breaker is None:
            if self._policy is None:
                return _UNCOUNTED
            self._breaker = Breaker(self._policy, self._on_change)
        return self._breaker.acquire(now)

    def connection_made(self) -> None:
        """Take over that it can be reached again."""
        self.connected = True
        if self._breaker is not None:
            self._breaker.allow_probes()

    @property
    def is_ejected(self) -> bool:
        """Whether its breaker is not closed."""
        return self._breaker is not None and not self._breaker.is_closed


class Steering:
    """The endpoints of one client, and whose turn it is."""

    __slots__ = ("_ejected", "_turns", "endpoints")

    def __init__(self, servers: Sequence[Server], policy: BreakerPolicy | None, start: int) -> None:
        self.endpoints = {s: Endpoint(s, policy, self._breaker_changed) for s in servers}
        self._turns: RoundRobin[Endpoint] = RoundRobin(start=start)
        self._ejected = 0
        self.arrange()

    def arrange(self) -> None:
        """Take over which endpoints are connected and wanted."""
        self._turns.replace([e for e in self.endpoints.values() if e.connected and e.wanted])
        self._count()

    def pick(self, now: float, tried: Collection[Endpoint] = ()) -> tuple[Endpoint, Permit] | None:
        """Choose the endpoint of an attempt, none of `tried` if there is another; None where nothing is connected."""
        endpoint = self._turns.pick()
        if endpoint is None:
            return None
        permit = endpoint.acquire(now)
        if permit is not None and (not tried or endpoint not in tried):
            return endpoint, permit
        return self._pick_further(endpoint, permit, now, tried)

    def _pick_further(
        self, endpoint: Endpoint, permit: Permit | None, now: float, tried: Collection[Endpoint]
    ) -> tuple[Endpoint, Permit]:
        if permit is not None:
            if all(e in tried for e in self._turns.items):
                return endpoint, permit
            permit.record(Outcome.NEUTRAL, now)
        panic = is_panic(self._ejected, len(self._turns.items))
        if panic and endpoint not in tried:
            return endpoint, _UNCOUNTED
        for candidate in self._turns.turn(tried):
            allowed = candidate.acquire(now)
            if allowed is not None:
                return candidate, allowed
            if panic:
                return candidate, _UNCOUNTED
        return endpoint, _UNCOUNTED

    def _breaker_changed(self, _: BreakerState) -> None:
        self._count()

    def _count(self) -> None:
        self._ejected = sum(e.is_ejected for e in self._turns.items)
