"""Who is called next, as a mesh client decides it: those connected, in the balancer's order, those not tried yet first,
none whose breaker says no, and ejection ignored where it says no for more than half (see mesh.client.roster and
mesh.client.balance).

Breakers are made when an endpoint is called for the first time: a thousand clients of a hundred servers have 100,000.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from mesh.balancing.load import Ending
from mesh.balancing.making import picker_for
from mesh.balancing.picker import Candidate, Picker
from mesh.balancing.round_robin import RoundRobin
from mesh.clock import Dice
from mesh.policy import BalancerPolicy, BreakerPolicy
from mesh.resilience.breaker import Breaker, BreakerState, Cause, Permit, is_panic
from mesh.resilience.outcome import Outcome
from mesh.resilience.peers import Peers
from mesh.simulation.server import Server
from mesh.simulation.timeline import Timeline

# Handed out where no breaker is asked: nothing that it is told can change one.
_UNCOUNTED = Permit(Breaker(BreakerPolicy()), -1)


class Endpoint:
    """A server as one client sees it."""

    __slots__ = ("_breaker", "_client", "candidate", "connected", "server", "wanted")

    def __init__(self, server: Server, client: Endpoints) -> None:
        self.server = server
        self.connected = True
        self.wanted = True
        """It has not said that it is leaving."""
        self.candidate: Candidate[Endpoint] | None = None
        """What a balancer that goes by loads knows of it."""
        self._client = client
        self._breaker: Breaker | None = None

    def acquire(self, now: float) -> Permit | None:
        """Return leave to call it, or None while it is to be left alone."""
        if self._breaker is None:
            policy = self._client.breaker
            if policy is None:
                return _UNCOUNTED
            self._breaker = Breaker(policy, self._client.breaker_changed, self._client.peers)
            self._client.peers.add(self._breaker)
        return self._breaker.acquire(now)

    def connection_made(self, now: float) -> None:
        """Take over that it can be reached again."""
        self.connected = True
        if self._breaker is not None:
            self._breaker.allow_probes(now)

    @property
    def breaker(self) -> Breaker | None:
        """Its breaker, if it was ever called."""
        return self._breaker

    @property
    def is_ejected(self) -> bool:
        """Whether its breaker is not closed."""
        return self._breaker is not None and not self._breaker.is_closed

    def call_began(self, now: float) -> None:
        """Count a call in, where anybody asks."""
        if self.candidate is not None:
            self.candidate.load.began(now)

    def call_ended(self, now: float, took: float, ending: Ending) -> None:
        """Count a call out."""
        if self.candidate is not None:
            self.candidate.load.ended(now, took, ending)


Picked = tuple[Endpoint, Permit]


class Steering(Protocol):
    """Chooses an endpoint for each attempt."""

    def arrange(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Choose from these from now on; called whenever one comes, goes, or is ejected."""
        ...

    def pick(self, now: float, tried: Collection[Endpoint]) -> Picked | None:
        """Choose the endpoint of an attempt, none of `tried` if there is another; None where nothing is connected."""
        ...


class Endpoints:
    """The endpoints of one client."""

    __slots__ = ("_of", "_steering", "_timeline", "breaker", "peers", "pick")

    def __init__(
        self,
        servers: Sequence[Server],
        breaker: BreakerPolicy | None,
        balancer: BalancerPolicy,
        timeline: Timeline,
        dice: Dice,
    ) -> None:
        self.breaker = breaker
        self.peers = Peers()
        self._timeline = timeline
        picker = picker_for(balancer, start=dice.random())
        self._steering: Steering = InTurn(dice.randrange(1024)) if picker is None else ByPicker(picker, dice)
        self._of = {s: Endpoint(s, self) for s in servers}
        self.pick = self._steering.pick
        self.arrange()

    def get(self, server: Server) -> Endpoint | None:
        """Return the endpoint of a server, if this client knows it."""
        return self._of.get(server)

    def arrange(self) -> None:
        """Take over which endpoints are connected and wanted."""
        callable_now = [e for e in self._of.values() if e.connected and e.wanted]
        self.peers.replace(e.breaker for e in callable_now if e.breaker is not None)
        self._steering.arrange(callable_now, self._timeline.now)

    def breaker_changed(self, _state: BreakerState, _cause: Cause | None) -> None:
        """Take over that one was ejected, or is no longer."""
        self.arrange()


class InTurn:
    """Plain round robin: mesh.client.roster's rules."""

    __slots__ = ("_ejected", "_turns")

    def __init__(self, start: int) -> None:
        self._turns: RoundRobin[Endpoint] = RoundRobin(start=start)
        self._ejected = 0

    def arrange(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Turn over these."""
        self._turns.replace(endpoints)
        self._ejected = sum(e.is_ejected for e in endpoints)

    def pick(self, now: float, tried: Collection[Endpoint] = ()) -> Picked | None:
        """Choose the next."""
        endpoint = self._turns.pick()
        if endpoint is None:
            return None
        permit = endpoint.acquire(now)
        if permit is not None and (not tried or endpoint not in tried):
            return endpoint, permit
        return self._pick_further(endpoint, permit, now, tried)

    def _pick_further(
        self, endpoint: Endpoint, permit: Permit | None, now: float, tried: Collection[Endpoint]
    ) -> Picked:
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


class ByPicker:
    """Any other balancer: mesh.client.balance's rules."""

    __slots__ = ("_dice", "_panic", "_picker")

    def __init__(self, picker: Picker[Endpoint], dice: Dice) -> None:
        self._picker = picker
        self._dice = dice
        self._panic = False

    def arrange(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Choose from these."""
        candidates = []
        for endpoint in endpoints:
            if endpoint.candidate is None:
                endpoint.candidate = Candidate(endpoint, endpoint.server.id, since=now)
            endpoint.candidate.ejected = endpoint.is_ejected
            candidates.append(endpoint.candidate)
        self._panic = is_panic(sum(c.ejected for c in candidates), len(candidates))
        self._picker.replace(candidates, now)

    def pick(self, now: float, tried: Collection[Endpoint] = ()) -> Picked | None:
        """Choose by the picker: those not tried yet, then the others; of each the first that may be called."""
        draw = self._dice.random()
        first: Endpoint | None = None
        avoided = [e.candidate for e in tried if e.candidate is not None]
        for attempt in range(2 if avoided else 1):
            if attempt:
                avoided = []
            while (candidate := self._picker.pick(now, draw, avoided)) is not None:
                endpoint = candidate.item
                permit = endpoint.acquire(now)
                if permit is not None:
                    return endpoint, permit
                if self._panic:
                    return endpoint, _UNCOUNTED
                first = first or endpoint
                avoided.append(candidate)
        return (first, _UNCOUNTED) if first is not None else None
