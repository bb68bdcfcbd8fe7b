"""Leases of etcd, kept alive over one stream for all of them. `heartbeat` decides when; here is only the waiting."""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress

from grpcmesh.etcd.v3 import etcd_pb2 as pb
from mesh.clock import Clock, Dice
from mesh.errors import LeaseLost, StoreError
from mesh.etcd.heartbeat import Heartbeat
from mesh.etcd.session import Session, Stream, drop
from mesh.etcd.wire import GRANT, KEEP_ALIVE, REVOKE
from mesh.resilience.reconnect import Reconnect
from mesh.telemetry.metrics import LEASES_LOST
from mesh.timers import timeout

_log = logging.getLogger("mesh.etcd")

# Longest nap of the loop, in seconds: a lease granted meanwhile is first due after TTL/3, and no TTL is below 2 s.
_NAP = 0.5


class EtcdLease:
    """One lease. See `mesh.store.Lease`."""

    def __init__(self, keeper: LeaseKeeper, number: int, ttl: float) -> None:
        self._keeper = keeper
        self._ended = asyncio.Event()
        self.id = number
        self.ttl = ttl

    def __repr__(self) -> str:
        return f"EtcdLease({self.id:x}, ttl={self.ttl:g})"

    async def lost(self) -> None:
        """Return when the lease has ended without our asking."""
        await self._ended.wait()

    async def revoke(self) -> None:
        """End the lease and delete its keys."""
        await self._keeper.revoke(self)

    def end(self) -> None:
        """Let `lost` return."""
        self._ended.set()


class LeaseKeeper:
    """Grants leases and keeps all of them alive. `_task` runs while there are any."""

    def __init__(self, session: Session, clock: Clock, dice: Dice) -> None:
        self._session = session
        self._clock = clock
        self._dice = dice
        self._heartbeat = Heartbeat()
        self._leases: dict[int, EtcdLease] = {}
        self._task: asyncio.Task[None] | None = None

    async def grant(self, ttl: float) -> EtcdLease:
        """Ask etcd for a lease and keep it alive from now on."""
        asked_at = self._clock.monotonic()
        answer = await self._session.call(GRANT, pb.LeaseGrantRequest(ttl=math.ceil(ttl)))
        lease = EtcdLease(self, answer.id, float(answer.ttl))
        self._leases[lease.id] = lease
        self._heartbeat.grant(lease.id, lease.ttl, asked_at)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(), name="mesh-etcd-leases")
        return lease

    async def revoke(self, lease: EtcdLease) -> None:
        """End a lease and delete its keys; silent if it has ended."""
        self._heartbeat.forget(lease.id)
        self._leases.pop(lease.id, None)
        try:
            await self._session.call(REVOKE, pb.LeaseRevokeRequest(id=lease.id))
        except LeaseLost:
            return

    async def close(self) -> None:
        """Stop keeping leases alive; they end by themselves."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _keep(self) -> None:
        reconnect = Reconnect()
        while self._heartbeat:
            try:
                async with self._session.stream(KEEP_ALIVE) as stream:
                    self._heartbeat.reconnect(self._clock.monotonic())
                    await self._beat(stream, reconnect)
            except StoreError as e:
                _log.debug("keepalive stream broke: %s", e)
            self._expire()
            if self._heartbeat:
                await self._clock.sleep(reconnect.failed(self._dice.random()))

    async def _beat(
        self, stream: Stream[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], again: Reconnect
    ) -> None:
        """Send what is due and take the answers, until there are no leases or the stream breaks."""
        reading: asyncio.Task[pb.LeaseKeepAliveResponse] | None = None
        try:
            while self._heartbeat:
                for number in self._heartbeat.due(self._clock.monotonic()):
                    await stream.send(pb.LeaseKeepAliveRequest(id=number))
                reading = reading or asyncio.create_task(stream.read())
                with suppress(TimeoutError):
                    async with timeout(min(_NAP, self._heartbeat.next_wake(self._clock.monotonic()))):
                        await asyncio.wait([reading])
                if reading.done():
                    answer, reading = reading.result(), None
                    self._heard(answer)
                    again.worked()
                self._expire()
                if self._heartbeat.is_overdue(self._clock.monotonic()):
                    raise stream.silent("no answer to a lease's sign of life")
        finally:
            await drop(reading)

    def _heard(self, answer: pb.LeaseKeepAliveResponse) -> None:
        self._session.heard()
        if not self._heartbeat.answer(answer.id, float(answer.ttl), self._clock.monotonic()):
            self._lose(answer.id, "etcd says that it has ended")

    def _expire(self) -> None:
        for number in self._heartbeat.expire(self._clock.monotonic()):
            self._lose(number, "no answer came within its time to live")

    def _lose(self, number: int, reason: str) -> None:
        LEASES_LOST.inc()
        _log.warning("lost lease %x: %s", number, reason, extra={"event.action": "lease-lost"})
        lease = self._leases.pop(number, None)
        if lease is not None:
            lease.end()
