"""A server on the mesh: bound, healthy, registered, and gone in good order.

Coming: bind, serve, health SERVING, register. Leaving, in the order of docs/design.md: say so in the store, health
NOT_SERVING, let the watchers move away, GOAWAY and finish the calls in flight, delete the key, revoke the lease. Each
step is bounded, so a stuck handler or a store that is away cost what `drain` allows and not more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from mesh.clock import Clock, Dice
from mesh.contract.descriptors import descriptor_set, digest, is_plumbing
from mesh.credentials import server_credentials
from mesh.errors import SettingsError
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, Instance, State
from mesh.registry.registrar import Registrar
from mesh.resilience.limiter import LimitPolicy
from mesh.server.admission import Admission
from mesh.server.handlers import Router
from mesh.server.health import Health
from mesh.server.limits import server_options
from mesh.server.place import advertised, bind, instance_id
from mesh.settings import Settings
from mesh.store import Store
from mesh.telemetry import tracing
from mesh.wallclock import CLOCK, DICE

_log = logging.getLogger("mesh.server")

_PLUMBING = ("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

# What leaving waits for the store to take that we drain. It answers in milliseconds, or is away, and then health and
# GOAWAY tell the same.
_ANNOUNCING = 0.4
# What handlers get to clean up after they were cancelled at the end of `drain`.
_LAST_GRACE = 0.15
# A stream that its contract lets run so long is a watch: it would be cut in the end anyway. Cut as leaving begins, its
# caller is elsewhere sooner, and we are gone sooner.
_WATCH = 60.0
# How long after `drain` the last of it may end: the key is deleted, connections are closed. One second is promised, and
# the interpreter needs some of it to end.
_LATEST = 0.5
# What a store that was slow to hear the news is given to delete the key; a hung one must not cost all of `drain`.
_ONE_MORE_TRY = 1.0
_CLOSING = 0.2


class Server:
    """Serves instances of generated servicers. `async with` starts it and leaves in order.

    settings: from the environment by default. store: etcd by the settings by default; a store that is given stays open.
    """

    def __init__(
        self,
        *servicers: object,
        settings: Settings | None = None,
        store: Store | None = None,
        clock: Clock = CLOCK,
        dice: Dice = DICE,
    ) -> None:
        self._settings = settings if settings is not None else Settings.from_env()
        self._clock, self._dice = clock, dice
        if not servicers:
            raise SettingsError("there is nothing to serve: give at least one servicer")
        self._router = Router(servicers, clock, self._make_admission())
        self.services = tuple(self._router.services)
        self.instance_id = instance_id(self._settings, dice)
        self._health = Health(self.services)
        self._add_plumbing()
        self._given_store = store
        self._store: Store | None = None
        self._server: grpc.aio.Server | None = None
        self._registrar: Registrar | None = None
        self._instances: tuple[Instance, ...] = ()
        self._leaving: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        tracing.adopt()

    @property
    def endpoint(self) -> Endpoint:
        """Where others reach it; known once it was started."""
        return self.instances[0].endpoint

    @property
    def instances(self) -> tuple[Instance, ...]:
        """What is registered: one instance for each service, all of one id."""
        if not self._instances:
            raise RuntimeError("the server was not started")
        return self._instances

    @property
    def registered(self) -> bool:
        """Whether the store knows of it now."""
        return self._registrar is not None and self._registrar.registered

    async def start(self) -> None:
        """Bind, serve and begin to register. Returns when calls are answered, whether or not the store is there.

        Raises SettingsError if the port or the certificates cannot be had.
        """
        tls = self._settings.tls
        credentials = server_credentials(tls, clock=self._clock) if tls is not None else None
        self._server = server = grpc.aio.server(options=server_options())
        # By name only. Registered with grpc method by method, calls cost 4 % more here (python -m bench server).
        server.add_generic_rpc_handlers((self._router,))
        try:
            bound = bind(server, self._settings.listen, credentials)
            endpoint = await advertised(bound, self._settings)
            registrar = self._make_registrar(endpoint)
            await server.start()
            self._health.set(True)
            about = {"event.action": "started", "service.address": str(endpoint), "service.id": self.instance_id}
            _log.info("serving %s on %s", ", ".join(self.services), bound, extra=about)
            await registrar.start(wait=False)
        except BaseException:
            await server.stop(0)
            raise
        self._registrar = registrar

    async def pause(self) -> None:
        """Ask for no calls until `resume`; calls that come nevertheless are answered."""
        if self._registrar is not None:
            await self._registrar.set_state(State.PAUSED)
        self._health.set(False)

    async def resume(self) -> None:
        """Ask for calls again."""
        self._health.set(True)
        if self._registrar is not None:
            await self._registrar.set_state(State.READY)

    async def leave(self, *, at_once: bool = False) -> None:
        """Leave in order, in `drain` seconds and a little at most; `at_once` lets go of the calls in flight.

        Harmless when repeated: all callers wait for the same leaving, and one in a hurry hurries all.
        """
        if at_once:
            self._hurry.set()
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(), name="mesh-leave")
        await asyncio.shield(self._leaving)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    @property
    def unfinished(self) -> int:
        """Calls whose handlers still run, other than of health and reflection."""
        return len(self._router.in_hand)

    def _make_admission(self) -> Admission | None:
        lowest, highest = self._settings.concurrency_min, self._settings.concurrency_max
        return Admission(LimitPolicy(min(lowest, highest), highest), self._clock) if highest else None

    def _add_plumbing(self) -> None:
        self._router.add(self._health)
        if not self._settings.reflection:
            return
        servicer = ReflectionServicer([*self.services, *_PLUMBING])
        self._router.add(servicer)
        # The stable name of the same protocol, message for message; newer tools ask for it first.
        self._router.add(servicer, lambda service: service.replace("v1alpha", "v1"))

    def _make_registrar(self, endpoint: Endpoint) -> Registrar:
        settings, contract = self._settings, descriptor_set(self.services)
        self._instances = tuple(
            Instance(
                service=service,
                id=self.instance_id,
                endpoint=endpoint,
                zone=settings.zone,
                version=settings.version,
                weight=settings.weight,
                started=self._clock.time(),
                contract=digest(contract) if contract else "",
            )
            for service in self.services
            if not is_plumbing(service)
        )
        self._store = self._given_store if self._given_store is not None else EtcdStore.from_settings(settings)
        return Registrar(
            self._store,
            self._instances,
            prefix=settings.prefix,
            ttl=settings.ttl,
            contract=contract,
            clock=self._clock,
            dice=self._dice,
        )

    async def _leave(self) -> None:
        now = asyncio.get_running_loop().time
        end = now() + self._settings.drain
        _log.info("leaving", extra={"event.action": "draining", "service.id": self.instance_id})
        heard = self._registrar is not None and await _bounded(
            self._registrar.set_state(State.DRAINING), "say that it leaves", _ANNOUNCING
        )
        self._health.set(False)
        await self._unless_hurried(min(self._settings.settle, self._settings.drain))
        if self._server is not None:
            await self._stop(self._server, end)
        if self._hurry.is_set():
            end = now()
        if self._registrar is not None:
            patience = end + _LATEST - now()
            patience = patience if heard else min(patience, _ONE_MORE_TRY)
            await _bounded(self._registrar.leave(), "delete its registration", patience)
        if self._store is not None and self._given_store is None:
            await _bounded(self._store.close(), "close the store", _CLOSING)
        self._router.close()
        _log.info("left", extra={"event.action": "stopped", "service.id": self.instance_id})

    async def _stop(self, server: grpc.aio.Server, end: float) -> None:
        """Send GOAWAY, wait for the calls in flight, cut those that go on."""
        loop = asyncio.get_running_loop()
        self._router.plumbing.cut(streams_over=0.0)
        self._router.in_hand.cut(streams_over=max(self._settings.drain, _WATCH))
        left = 0.0 if self._hurry.is_set() else max(end - loop.time(), 0.0)
        stop = asyncio.ensure_future(server.stop(left + _LAST_GRACE))
        hurried = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({stop, hurried}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stop.done():
            self._router.plumbing.cut()
            if cut := self._router.in_hand.cut():
                _log.warning("cut %d calls that went on", cut, extra={"event.action": "calls-cut"})
            await asyncio.wait({stop}, timeout=_LAST_GRACE)
        if not stop.done():
            await _bounded(server.stop(0), "stop the server", _LAST_GRACE)

    async def _unless_hurried(self, seconds: float) -> None:
        if seconds > 0 and not self._hurry.is_set():
            hurried = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait({hurried}, timeout=seconds)
            hurried.cancel()


async def _bounded(step: Coroutine[Any, Any, object], purpose: str, seconds: float) -> bool:
    """Await a step of leaving for so long, and return whether it ended in time.

    Whatever becomes of it the next step comes; a late one goes on beside it.
    """
    task = asyncio.create_task(step)
    await asyncio.wait({task}, timeout=max(seconds, 0.05))
    error = task.exception() if task.done() and not task.cancelled() else None
    if error is not None or not task.done():
        reason = error or f"no answer in {seconds:.1f} s"
        _log.warning("could not %s: %s", purpose, reason, extra={"event.action": "leaving-step-failed"})
        return False
    return True
