"""Picking by a balancer other than plain round robin: joins the pickers of `mesh.balancing` with the roster's slots,
the breakers' leave and the calls' latencies.

Round robin does not come by here (see Roster.pick): a channel with the default policy has no Balance and pays for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

from google.protobuf.message import DecodeError, Message

from grpcmesh.v1 import load_pb2
from mesh.balancing.load import Ending, Load
from mesh.balancing.picker import Candidate, Picker
from mesh.client.ended import peek
from mesh.client.roster import UNCOUNTED, Picked, Slot
from mesh.clock import Dice
from mesh.instance import State, View
from mesh.policy import Balancer, BalancerPolicy
from mesh.resilience.breaker import BreakerState, Permit, is_panic
from mesh.resilience.outcome import Outcome

if TYPE_CHECKING:
    from mesh.client.method import Method

LOAD_REPORT = "mesh-load-bin"
"""Where servers of the mesh tell their load. gRPC's own entry (gRFC A51) says the same, but its core keeps that one."""


_PLAIN = BalancerPolicy()


class Ride(Permit):
    """A permit that also tells the endpoint's load how the call went."""

    __slots__ = ("_inner", "_load", "_started", "_timed", "refused")

    def __init__(self, inner: Permit, load: Load, now: float, *, timed: bool) -> None:
        self._inner = inner
        self._load = load
        self._started = now
        self._timed = timed
        self.refused = False
        """The server was too busy for it (RESOURCE_EXHAUSTED): no fault, but a load."""
        load.began(now, timed=timed)

    def record(
        self, outcome: Outcome, now: float, draw: float = 0.5, took: float = 0.0, kind: str | None = None
    ) -> None:
        """Tell how the call went."""
        ending = _ENDINGS[outcome] if not self.refused else Ending.FAILED
        self._load.ended(now, now - self._started, ending, timed=self._timed)
        self._inner.record(outcome, now, draw, took, kind)


_ENDINGS = {
    Outcome.SUCCESS: Ending.ANSWERED,
    Outcome.FAILURE: Ending.FAILED,
    Outcome.NEUTRAL: Ending.CUT_SHORT,
}


class Balance:
    """The picker of one channel. Not locked: its loop owns it."""

    def __init__(self, policy: BalancerPolicy, picker: Picker[Slot], dice: Dice) -> None:
        self._picker = picker
        self._dice = dice
        self._keyed = policy.kind is Balancer.CONSISTENT_HASH
        self._tracks = policy.kind is Balancer.LEAST_LOADED
        self.reads_reports = policy.kind is Balancer.WEIGHTED and policy.load_reports
        self._candidates: tuple[Candidate[Slot], ...] = ()
        self._panic = False
        self._forced_open = False

    @classmethod
    def of(cls, policy: BalancerPolicy, zone: str, dice: Dice) -> Self | None:
        """Return what a policy asks for; None is plain round robin, the roster's own."""
        if policy == _PLAIN:
            return None
        # With the balancers, which most processes never ask for.
        from mesh.balancing.making import picker_for

        picker = picker_for(policy, zone=zone, start=dice.random())
        return cls(policy, picker, dice) if picker is not None else None

    def __repr__(self) -> str:
        return f"Balance({self._picker!r})"

    def arrange(self, slots: Iterable[Slot], now: float) -> None:
        """Pick from these from now on. Call it whenever one comes, goes, or changes, its breaker included."""
        before, candidates = set(self._candidates), []
        self._forced_open = False
        for slot in slots:
            candidate, instance = slot.candidate, slot.instance
            if candidate is None or slot.candidate_of != instance.id:
                # By address, as gRPC and Envoy hash: ids are made anew when a process starts, addresses mostly are not.
                candidate, slot.candidate_of = Candidate(slot, slot.name, since=now), instance.id
                slot.candidate = candidate
            elif candidate not in before:
                candidate.reported.restart()
            candidate.weight, candidate.zone = instance.weight, instance.zone
            candidate.ejected = not slot.breaker.is_closed
            self._forced_open |= slot.breaker.state is BreakerState.FORCED_OPEN
            candidates.append(candidate)
        self._candidates = tuple(candidates)
        self._panic = is_panic(sum(c.ejected for c in candidates), len(candidates))
        self._picker.replace(candidates, now)

    def pick(self, now: float, tried: Iterable[Slot], method: Method, request: object, metadata: Any) -> Picked | None:
        """Choose as Roster.pick does, by the policy's balancer."""
        if self._forced_open:
            return None
        draw = self._dice.random()
        key = key_of(method.policy.balancer, request, metadata) if self._keyed else None
        first: Candidate[Slot] | None = None
        avoided = [slot.candidate for slot in tried if slot.candidate is not None]
        # Those not tried yet, then the others; of each the first whose breaker lets the call through.
        for attempt in range(2 if avoided else 1):
            if attempt:
                avoided = []
            while (candidate := self._picker.pick(now, draw, avoided, key)) is not None:
                permit = candidate.item.breaker.acquire(now)
                if permit is None and self._panic:
                    permit = UNCOUNTED
                if permit is not None:
                    return self._track(candidate, permit, now, method)
                first = first or candidate
                avoided.append(candidate)
        return self._track(first, UNCOUNTED, now, method) if first is not None else None

    def launched(self, slot: Slot, attempt: Any, monotonic: Callable[[], float]) -> None:
        """Hear what the server reports of itself when the attempt ends."""
        candidate = slot.candidate
        # None: an operator has just gone back to round robin, between two attempts of a call.
        if candidate is not None:
            attempt.add_done_callback(lambda ended: _read_report(candidate, ended, monotonic()))

    def _track(self, candidate: Candidate[Slot], permit: Permit, now: float, method: Method) -> Picked:
        if self._tracks:
            # A stream of responses lasts as long as its caller listens: no latency.
            permit = Ride(permit, candidate.load, now, timed=method.answers_once)
        return candidate.item, permit


def key_of(policy: BalancerPolicy, request: object, metadata: Any) -> bytes | None:
    """Return what a call is about, by the request's field or the metadata; None where neither says anything."""
    if policy.hash_field:
        try:
            value = _getter(policy.hash_field)(request)
        except AttributeError:
            value = None  # bytes, or an iterator: no message to look into
        if value is not None and not isinstance(value, Message) and value not in ("", b""):
            return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    if policy.hash_metadata:
        for name, value in metadata or ():
            if name == policy.hash_metadata and value:
                return value if isinstance(value, bytes) else str(value).encode()
    return None


def instances_of(view: View, held: Sequence[Slot], policy: BalancerPolicy, client: str, zone: str) -> View:
    """Return the part of a view that this client connects to; all of it where the policy names no size.

    held: its slots; those of instances that leave stay in the part, for the calls in flight.
    """
    if not policy.subset_size or not view.known:
        return view
    from mesh.balancing.subset import subset

    chosen = subset(client, view.ready, policy.subset_size, zone if policy.prefer_zone else "")
    names = {slot.instance.id for slot in held}
    leaving = [i for i in view.instances if i.state is not State.READY and i.id in names]
    return view._replace(instances=tuple(sorted([*chosen, *leaving], key=lambda i: i.id)))


def without(view: View, part: View, held: Sequence[Slot]) -> View:
    """Return `part` with those held instances that are well but no longer in it, as draining: they are to be left as if
    they had said goodbye, not kept as if they had vanished.
    """
    kept = {i.id for i in part.instances}
    names = {slot.instance.id for slot in held if not slot.suspect} - kept
    left = [i.with_state(State.DRAINING) for i in view.ready if i.id in names]
    return part._replace(instances=(*part.instances, *left)) if left else part


_getter = cache(attrgetter)


def _read_report(candidate: Candidate[Slot], ended: Any, now: float) -> None:
    for name, value in peek(ended.trailing_metadata()) or ():
        if name == LOAD_REPORT:
            try:
                report = load_pb2.OrcaLoadReport.FromString(value)
            except (DecodeError, TypeError):
                return
            utilization = report.application_utilization or report.cpu_utilization
            candidate.reported.report(now, utilization, report.rps_fractional, report.eps)
