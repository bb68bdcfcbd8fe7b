"""Connections to every instance of one service, kept as the roster asks, and the waiting for one that can be called.

State changes in plain functions without an await; tasks only wait and then call them. One event loop owns a pool.

What the first call of most clients does not need (balancers, certificates, probes for the fleet) is imported where it
is used: a process begins sooner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any

from mesh.client.connection import Connection
from mesh.client.lookout import Lookout
from mesh.client.policies import ServicePolicies
from mesh.client.roster import Changes, Picked, Roster, Slot
from mesh.client.source import Source
from mesh.clock import Clock, Dice
from mesh.instance import State, View
from mesh.policy import BalancerPolicy, BudgetPolicy
from mesh.resilience.breaker import BreakerState, Cause
from mesh.resilience.budget import Budget
from mesh.resilience.outcome import FORCED_OPEN
from mesh.settings import TLSFiles
from mesh.telemetry import metrics, tally

if TYPE_CHECKING:
    import grpc

    from mesh.client.balance import Balance
    from mesh.client.fleet_probe import FleetProbe
    from mesh.client.health import HealthWatch

_log = logging.getLogger("mesh.client")

# Certificates are renewed days before they expire; a look every few seconds is soon enough and costs three stat calls.
_RENEWAL_PAUSE = 5.0

MAX_TIMEOUT = 24 * 3600.0
"""Seconds that a call may take. A deadline of ten years is a mistake or a trick; beyond some centuries gRPC's
arithmetic overflows and the call fails at once."""


class Pool:
    """The connections of one channel."""

    def __init__(
        self,
        service: str,
        source: Source,
        *,
        policies: ServicePolicies,
        tls: TLSFiles | None,
        drain: float,
        zone: str,
        client: str,
        clock: Clock,
        dice: Dice,
    ) -> None:
        self.service = service
        self.clock = clock
        self.dice = dice
        self.budget = Budget(BudgetPolicy(), clock.monotonic())
        self.roster = Roster(service, policies.breaker, start=dice.randrange(1024), on_breaker=self._breaker_changed)
        self.pick: Callable[..., Picked | None] = self.roster.pick
        self.balance: Balance | None = None
        """Picks instead of the roster, where the policy asks for more than turns."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closed = False
        self.due = clock.monotonic()
        """When a call that succeeds is to have stock taken."""
        self._source = source
        self._policies = policies
        self._balanced_by = BalancerPolicy()
        self._zone = zone
        self._client = client
        """Who we are, for the choice of a subset: the same for as long as we live."""
        self._told = View(service)
        self._tls = tls
        self._credentials: grpc.ChannelCredentials | None = None
        self._fingerprint = ""
        if tls is not None:
            from mesh import credentials

            self._credentials = credentials.channel_credentials(tls)
            self._fingerprint = credentials.fingerprint(tls)
        self._drain = drain
        self._waiters: set[asyncio.Future[None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewed: dict[Slot, Connection] = {}
        self._probes: FleetProbe | None = None
        self.lookout = Lookout(self)
        self._rebalance()

    def __repr__(self) -> str:
        return f"Pool({self.service}, {self.roster!r})"

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen and to connect, in the running loop."""
        self.loop = loop
        self._source.open(self._view_changed, self._override)
        if (shared := self._source.shared) is not None:
            from mesh.client.fleet_probe import FleetProbe

            self._probes = FleetProbe(*shared, self.service, self.clock, self.dice, self.spawn)
        if self._tls is not None:
            self.spawn(self._renew())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something that has to end before the pool is closed."""
        assert self.loop is not None
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def take_stock(self, now: float) -> None:
        """Hand calls to the metrics, and look for instances that hang: a few times a second, by calls that succeed, on
        the loop or in any thread.
        """
        self.due = now + tally.EVERY
        tally.flush(now)
        if self.lookout.look(now):
            assert self.loop is not None
            self.loop.call_soon_threadsafe(self.lookout.tell)

    @property
    def is_hopeless(self) -> bool:
        """Whether waiting is pointless for now: the registry was read, and no connection is being made."""
        wanted = [s for s in self.roster.slots if s.instance.state is State.READY]
        return self.roster.view.known and all(s.failing for s in wanted)

    @property
    def complaint(self) -> str:
        """Why no instance can be called, in a sentence."""
        view, where = self.roster.view, self._source.where
        if self.roster.is_forced_open:
            return f"{self.service} is closed to its callers: {FORCED_OPEN} ({where})"
        if not view.known:
            why = f": {self._source.trouble}" if self._source.trouble else ""
            return f"the instances of {self.service} are not known yet: the registry did not answer ({where}){why}"
        if not view.instances:
            return f"no instance of {self.service} is registered ({where})"
        if not view.ready:
            return f"every instance of {self.service} is draining or paused: {len(view.instances)} in all ({where})"
        names = [str(i.endpoint) for i in view.ready]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return f"no instance of {self.service} can be reached: {shown} ({where})"

    async def changed(self, limit: float | None) -> None:
        """Return when something may have changed about who can be called, or after so many seconds."""
        assert self.loop is not None
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiters.add(waiter)
        timer = self.loop.call_later(limit, _wake, waiter) if limit is not None else None
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()

    async def close(self, grace: float | None) -> None:
        """Finish calls within `grace` seconds, cancel the rest, and leave nothing behind."""
        self.closed = True
        await self._source.close()
        slots = self.roster.slots
        if grace:
            await self._finish(grace)
        ends = [slot.connection.close() for slot in slots]
        ends += [connection.close() for connection in self._renewed.values()]
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*ends, *tasks, return_exceptions=True)
        for slot in slots:
            slot.connected = False
        self._count()

    async def _finish(self, grace: float) -> None:
        """Wait, for so long, until no call is in flight."""
        ends = [self.spawn(slot.connection.close(grace)) for slot in self.roster.slots]
        if ends:
            await asyncio.wait(ends, timeout=grace)

    def _view_changed(self, view: View) -> None:
        if self.closed:
            return
        self._told = view
        if self._balanced_by.subset_size:
            view = self._part_of(view)
        self._apply(self.roster.update(view))

    def _part_of(self, view: View) -> View:
        from mesh.client.balance import instances_of, without

        part = instances_of(view, self.roster.slots, self._balanced_by, self._client, self._zone)
        left = without(view, part, self.roster.slots)
        if left is not part:
            self._apply(self.roster.update(left))
        return part

    def _override(self, text: bytes | None) -> None:
        self._policies.override(text)
        if self.roster.apply(self._policies.breaker, self.clock.monotonic()):
            self._apply(Changes())
        self._rebalance()

    def _rebalance(self) -> None:
        policy = self._policies.balancer
        if policy == self._balanced_by:
            return
        from mesh.client.balance import Balance

        self._balanced_by = policy
        self.balance = Balance.of(policy, self._zone, self.dice)
        self._arrange()
        # The subset may be another one now.
        self._view_changed(self._told)

    def _arrange(self) -> None:
        if self.balance is not None:
            self.balance.arrange(self.roster.pickable, self.clock.monotonic())

    def _apply(self, changes: Changes) -> None:
        for slot in changes.opened:
            slot.connection = self._connect(slot)
        for slot in changes.closed:
            self.spawn(self._leave(slot))
        if self._probes is not None:
            self._probes.forget(changes.closed)
        self._arrange()
        self._count()
        for waiter in self._waiters:
            _wake(waiter)

    def pass_over(self, hanging: Collection[object]) -> None:
        """Pick none of these endpoints while there are others."""
        self.roster.pass_over(hanging)
        self._apply(Changes())

    def heed(self, slot: Slot, *, serving: bool) -> None:
        """Take over what an instance says of its health."""
        self.roster.health_changed(slot, serving=serving)
        self._apply(Changes())

    def _connect(self, slot: Slot) -> Connection:
        def told(connected: bool, failing: bool) -> None:
            if not self.closed and slot.connection is connection:
                now = self.clock.monotonic()
                self._apply(self.roster.connection_changed(slot, now, connected=connected, failing=failing))
            elif connected and self._renewed.get(slot) is connection:
                self._swap(slot, self._renewed.pop(slot))

        def ask(connection: Connection) -> HealthWatch:
            from mesh.client.health import watch_health

            return watch_health(self, slot, connection)

        # Only servers of the mesh bring their contract along.
        connection = Connection(slot.name, self._credentials, told, ours=bool(slot.instance.contract), ask=ask)
        return connection

    async def _leave(self, slot: Slot) -> None:
        renewed = self._renewed.pop(slot, None)
        if renewed is not None:
            await renewed.close()
        await slot.connection.close(self._drain)

    async def _renew(self) -> None:
        from mesh import credentials

        assert self._tls is not None
        while True:
            await self.clock.sleep(_RENEWAL_PAUSE)
            seen = credentials.fingerprint(self._tls)
            if seen == self._fingerprint:
                continue
            try:
                self._credentials = credentials.channel_credentials(self._tls)
            except Exception as e:
                _log.warning("kept the certificate before: %s", e, extra={"event.action": "certificate-refused"})
                continue
            self._fingerprint = seen
            for slot in self.roster.slots:
                overtaken, self._renewed[slot] = self._renewed.get(slot), self._connect(slot)
                if overtaken is not None:
                    self.spawn(overtaken.close())

    def _swap(self, slot: Slot, fresh: Connection) -> None:
        worn, slot.connection, slot.calls, slot.serving = slot.connection, fresh, {}, True
        self._apply(self.roster.connection_changed(slot, self.clock.monotonic(), connected=True))
        # Without an end of its own: the longest deadline ends the last call on it.
        self.spawn(worn.close(MAX_TIMEOUT))

    def _count(self) -> None:
        slots = self.roster.slots
        ready = len(self.roster.pickable) if not self.closed else 0
        known = len(slots) if not self.closed else 0
        metrics.CLIENT_ENDPOINTS.labels(self.service, "ready").set(ready)
        metrics.CLIENT_ENDPOINTS.labels(self.service, "not_ready").set(known - ready)

    def _breaker_changed(self, state: BreakerState, cause: Cause | None) -> None:
        why = f": {cause.value}" if cause is not None else ""
        if cause is not None:
            metrics.CLIENT_BREAKER_VERDICTS.labels(self.service, cause.value).inc()
        action = f"breaker-{state.value}"
        if state is BreakerState.METRICS_ONLY:
            _log.info("a breaker of %s would open%s", self.service, why, extra={"event.action": action})
            return
        self._arrange()
        metrics.CLIENT_BREAKER_TRANSITIONS.labels(self.service, state.value).inc()
        _log.info("a breaker of %s is %s now%s", self.service, state.value, why, extra={"event.action": action})
        if self._probes is not None and self._policies.breaker.fleet_probe and self.loop is not None:
            self.loop.call_soon_threadsafe(self._look_at_breakers)

    def _look_at_breakers(self) -> None:
        if self._probes is not None:
            self._probes.look(self.roster.slots)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
