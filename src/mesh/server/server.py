"""A server on the mesh: bound, healthy, registered, and gone in good order.

Coming: bind, serve, health SERVING, register. Leaving, in the order of docs/design.md: say so in the store, health
NOT_SERVING, let the watchers move away, GOAWAY and finish the calls in flight, delete the key, revoke the lease. Each
step is bounded, so a stuck handler or a store that is away cost what `drain` allows and not more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from types import TracebackType
from typing import Self

import grpc
from grpc_reflection.v1alpha import _async as reflection
from grpc_reflection.v1alpha import reflection_pb2_grpc

from mesh.clock import Clock, Dice
from mesh.contract.descriptors import descriptor_set, digest, is_plumbing
from mesh.credentials import server_credentials
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, Instance, State
from mesh.registry.registrar import Registrar
from mesh.server.call import leave as cut_calls
from mesh.server.handlers import Router
from mesh.server.health import Health
from mesh.server.limits import server_options
from mesh.server.place import advertised, bind, instance_id
from mesh.settings import Settings
from mesh.store import Store
from mesh.telemetry import tracing
from mesh.wallclock import CLOCK, DICE

_log = logging.getLogger("mesh.server")

# What a leaving server waits for the store: to say that it drains, and to delete its key. The store answers in
# milliseconds or is away; then the lease's end tells the rest.
_STORE_PATIENCE = 0.4
# What handlers get to clean up after they were cancelled at the end of `drain`.
_LAST_GRACE = 0.15


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
        self._router = Router(servicers, clock)
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
        server.add_generic_rpc_handlers((self._router,))
        for service, handlers in self._router.registered().items():
            server.add_registered_method_handlers(service, dict(handlers))
        try:
            bound = bind(server, self._settings.listen, credentials)
            endpoint = await advertised(bound, self._settings)
        except BaseException:
            await server.stop(0)
            raise
        await server.start()
        self._health.set(True)
        about = {"event.action": "started", "service.address": str(endpoint), "service.id": self.instance_id}
        _log.info("serving %s on %s", ", ".join(self.services), bound, extra=about)
        await self._register(endpoint)

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
        """Calls whose handlers still run."""
        return len(self._router.calls)

    def _add_plumbing(self) -> None:
        self._router.add(self._health)
        if not self._settings.reflection:
            return
        servicer = _Reflection([*self.services, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"])
        self._router.add(servicer)
        # The stable name of the same protocol, message for message; newer tools ask for it first.
        self._router.add(servicer, lambda service: service.replace("v1alpha", "v1"))

    async def _register(self, endpoint: Endpoint) -> None:
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
        self._registrar = Registrar(
            self._store,
            self._instances,
            prefix=settings.prefix,
            ttl=settings.ttl,
            contract=contract,
            clock=self._clock,
            dice=self._dice,
        )
        await self._registrar.start(wait=False)

    async def _leave(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.drain
        _log.info("leaving", extra={"event.action": "draining", "service.id": self.instance_id})
        if self._registrar is not None:
            await _bounded(self._registrar.set_state(State.DRAINING), "say that it leaves")
        self._health.set(False)
        await self._unless_hurried(min(self._settings.settle, self._settings.drain))
        if self._server is not None:
            await self._stop(self._server, end)
        if self._registrar is not None:
            await _bounded(self._registrar.leave(), "delete its registration")
        if self._store is not None and self._given_store is None:
            await _bounded(self._store.close(), "close the store")
        _log.info("left", extra={"event.action": "stopped", "service.id": self.instance_id})

    async def _stop(self, server: grpc.aio.Server, end: float) -> None:
        """Send GOAWAY, wait for the calls in flight, cut those that go on."""
        loop = asyncio.get_running_loop()
        # A call that its contract lets run longer than we may wait (a watch) would be cut in the end anyway; cut now
        # its caller is elsewhere sooner, and we are gone sooner.
        cut_calls(self._router.calls, longer_than=self._settings.drain)
        left = 0.0 if self._hurry.is_set() else max(end - loop.time(), 0.0)
        stop = asyncio.ensure_future(server.stop(left + _LAST_GRACE))
        hurried = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({stop, hurried}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stop.done():
            if cut := cut_calls(self._router.calls):
                _log.warning("cut %d calls that went on", cut, extra={"event.action": "calls-cut"})
            await asyncio.wait({stop}, timeout=_LAST_GRACE)
        if not stop.done():
            await _bounded(server.stop(0), "stop the server")

    async def _unless_hurried(self, seconds: float) -> None:
        if seconds > 0 and not self._hurry.is_set():
            hurried = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait({hurried}, timeout=seconds)
            hurried.cancel()


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]  # grpc_reflection ships no types
    """Tells tools like grpcurl what is served."""


async def _bounded(step: Awaitable[object], purpose: str) -> None:
    """Await a step of leaving for a moment; whatever becomes of it, the next step comes."""
    try:
        await asyncio.wait_for(step, _STORE_PATIENCE)
    except Exception as e:
        _log.warning("could not %s: %s", purpose, e or type(e).__name__, extra={"event.action": "leaving-step-failed"})
