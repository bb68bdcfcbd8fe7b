"""Who may be called: a machine that joins what the registry says (a View), what the connections say, and what the
breakers say, into the list that is picked from. It opens nothing itself; it returns what is to be opened and closed.

Rules:
  1. One slot per endpoint. Where two instances name one endpoint (a restart, and the old key not yet expired), the one
     started last speaks for it.
  2. Picked from: slots that are connected and whose instance says READY. DRAINING and PAUSED ones keep their
     connection, for the calls in flight, and get no new call.
  3. An instance that vanishes after it was draining is closed. One that vanishes without a goodbye while its connection
     stands is a suspect: the connection is the better witness, so it stays until that breaks.
  4. With more than half of the connected endpoints ejected by their breakers, ejection is ignored (panic).
  5. One that says that it is not serving (`mesh.client.health`) or hangs (`mesh.resilience.stall`) is passed over while
     there are others.
  6. Where the policy forces the breakers open, nobody is picked, panic or not.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mesh.balancing.round_robin import RoundRobin
from mesh.instance import Endpoint, Instance, State, View
from mesh.policy import BreakerMode, BreakerPolicy
from mesh.resilience.breaker import Breaker, BreakerState, Cause, OnChange, Permit, is_panic
from mesh.resilience.outcome import Outcome
from mesh.resilience.peers import Peers

if TYPE_CHECKING:
    from mesh.balancing.picker import Candidate

UNCOUNTED = Permit(Breaker(BreakerPolicy()), -1)
"""Handed out in panic: nothing that it is told can change a breaker."""

Picked = tuple["Slot", Permit]

_ASK = Permit(Breaker(BreakerPolicy()), -1)
"""Stands in a turn for the permit of a breaker that is not closed: it has to be asked."""


class Slot:
    """An endpoint that we know, its breaker, and the connection that somebody else keeps for it."""

    __slots__ = (
        "breaker",
        "calls",
        "candidate",
        "candidate_of",
        "connected",
        "connection",
        "failing",
        "instance",
        "name",
        "serving",
        "suspect",
    )

    def __init__(self, instance: Instance, breaker: Breaker) -> None:
        self.instance = instance
        self.name = str(instance.endpoint)
        self.breaker = breaker
        self.connected = False
        self.failing = False
        """The last attempt to connect failed."""
        self.serving = True
        """What the instance has said of its health, as long as its connection stands."""
        self.suspect = False
        """Gone from the registry without a goodbye, but its connection stands."""
        self.candidate: Candidate[Slot] | None = None
        """What a balancer knows of it; plain round robin knows nothing."""
        self.candidate_of = ""
        """The id of the instance that this is known of: another one at the same address is another matter."""
        self.connection: Any = None
        self.calls: dict[Any, Any] = {}
        """The connection's multicallables, by method: a cache of whoever makes the calls."""

    def __repr__(self) -> str:
        words = [self.instance.state.value, "connected" if self.connected else "not connected"]
        words += ["suspect"] if self.suspect else []
        words += [] if self.serving else ["not serving"]
        return f"Slot({self.name}, {', '.join(words)}, {self.breaker!r})"


class Changes:
    """What is to be done about connections."""

    __slots__ = ("closed", "opened")

    def __init__(self) -> None:
        self.opened: list[Slot] = []
        self.closed: list[Slot] = []


class Roster:
    """The slots of one service. Not locked: one loop, or one lock, owns it."""

    def __init__(
        self,
        service: str,
        policy: BreakerPolicy,
        *,
        start: int = 0,
        on_breaker: OnChange = lambda _state, _cause: None,
    ) -> None:
        self.view = View(service)
        self._policy = policy
        self._on_breaker = on_breaker
        self._slots: dict[Endpoint, Slot] = {}
        self._pickable: tuple[Slot, ...] = ()
        self._turns: RoundRobin[Picked] = RoundRobin(start=start)
        """With what a closed breaker answers, which is always the same: then a pick is one look into a list, and of a
        thousand endpoints none has to be fetched from memory."""
        self._peers = Peers()
        self._ejected = 0
        self._hanging: Collection[object] = ()

    def __repr__(self) -> str:
        return f"Roster({list(self._slots.values())!r})"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every endpoint known, connected or not."""
        return tuple(self._slots.values())

    @property
    def pickable(self) -> tuple[Slot, ...]:
        """The endpoints that calls go to."""
        return self._pickable

    @property
    def callable(self) -> list[Slot]:
        """The endpoints that are connected and ready, those among them that hang included. Those that say that they are
        not serving are left out, unless all do.
        """
        ready = [s for s in self._slots.values() if s.connected and s.instance.state is State.READY]
        return [s for s in ready if s.serving] or ready

    def pass_over(self, hanging: Collection[object]) -> None:
        """Leave out endpoints by their connections, if others are left."""
        self._hanging = hanging
        self._arrange()

    @property
    def is_forced_open(self) -> bool:
        """Whether an operator has closed the service to its callers."""
        return self._policy.mode is BreakerMode.FORCED_OPEN

    def apply(self, policy: BreakerPolicy, now: float) -> bool:
        """Have the breakers go by another policy; False if it is the same."""
        if policy == self._policy:
            return False
        self._policy = policy
        for slot in self._slots.values():
            slot.breaker.apply(policy, now)
        self._arrange()
        return True

    def update(self, view: View) -> Changes:
        """Take over a new view. An unknown one says nothing and changes nothing."""
        changes = Changes()
        if not view.known:
            return changes
        self.view = view
        spoken_for: dict[Endpoint, Instance] = {}
        for instance in sorted(view.instances, key=lambda i: i.started):
            spoken_for[instance.endpoint] = instance
        for endpoint in [e for e in self._slots if e not in spoken_for]:
            self._vanished(endpoint, changes)
        for endpoint, instance in spoken_for.items():
            slot = self._slots.get(endpoint)
            if slot is None:
                breaker = Breaker(self._policy, self._breaker_changed, self._peers)
                slot = self._slots[endpoint] = Slot(instance, breaker)
                changes.opened.append(slot)
            slot.instance, slot.suspect = instance, False
        self._arrange()
        return changes

    def connection_changed(self, slot: Slot, now: float, *, connected: bool, failing: bool = False) -> Changes:
        """Take over what a connection says of itself."""
        changes = Changes()
        if self._slots.get(slot.instance.endpoint) is not slot:
            return changes
        if connected and not slot.connected:
            slot.breaker.allow_probes(now)
        slot.connected, slot.failing = connected, failing
        slot.serving = slot.serving or not connected
        if slot.suspect and not connected:
            del self._slots[slot.instance.endpoint]
            changes.closed.append(slot)
        self._arrange()
        return changes

    def health_changed(self, slot: Slot, *, serving: bool) -> None:
        """Take over what an instance says of its health."""
        slot.serving = serving
        self._arrange()

    def pick(self, now: float, tried: Collection[Slot] = ()) -> Picked | None:
        """Choose the endpoint of an attempt, none of `tried` if there is another; None where nothing is connected, or
        forced open.
        """
        turn = self._turns.pick()
        if turn is None:
            return None
        slot, permit = turn
        if permit is not _ASK and not tried:
            return turn
        return self._ask(slot, now, tried)

    def _ask(self, slot: Slot, now: float, tried: Collection[Slot]) -> Picked | None:
        permit = slot.breaker.acquire(now)
        if permit is not None and (not tried or slot not in tried):
            return slot, permit
        return self._pick_further(slot, permit, now, tried)

    def _pick_further(self, slot: Slot, permit: Permit | None, now: float, tried: Collection[Slot]) -> Picked | None:
        if self.is_forced_open:
            return None
        if permit is not None:
            others = [s for s in self._pickable if s not in tried]
            if not others:
                return slot, permit
            permit.record(Outcome.NEUTRAL, now)
        panic = is_panic(self._ejected, len(self._pickable))
        if panic and slot not in tried:
            return slot, UNCOUNTED
        order = [turn[0] for turn in self._turns.turn()]
        for candidate in (*(s for s in order if s not in tried), *(s for s in order if s in tried)):
            allowed = candidate.breaker.acquire(now)
            if allowed is not None:
                return candidate, allowed
            if panic:
                return candidate, UNCOUNTED
        return slot, UNCOUNTED

    def _vanished(self, endpoint: Endpoint, changes: Changes) -> None:
        slot = self._slots[endpoint]
        if slot.connected and slot.instance.state is State.READY:
            slot.suspect = True
            return
        del self._slots[endpoint]
        changes.closed.append(slot)

    def _arrange(self) -> None:
        found = self.callable
        self._pickable = tuple([s for s in found if s.connection not in self._hanging] or found)
        self._peers.replace(s.breaker for s in self._pickable)
        self._line_up()

    def _line_up(self) -> None:
        """Note what the breakers say."""
        self._turns.replace([(s, (s.breaker.is_closed and s.breaker.acquire(0.0)) or _ASK) for s in self._pickable])
        self._ejected = sum(not s.breaker.is_closed for s in self._pickable)

    def _breaker_changed(self, state: BreakerState, cause: Cause | None) -> None:
        self._line_up()
        self._on_breaker(state, cause)
