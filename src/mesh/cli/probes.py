"""How the local stack knows that each of its processes works, and what to say when one never does.

A probe polls until it is satisfied; who started the process bounds the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mesh.cli import health, ports
from mesh.cli.layout import Layout
from mesh.cli.process import Process
from mesh.clock import Clock
from mesh.errors import StoreError
from mesh.etcd import EtcdStore
from mesh.instance import Instance, State, View
from mesh.registry.resolver import Resolver

_PERIOD = 0.05
# Reading /proc for the sockets of a process group costs milliseconds.
_SOCKETS_PERIOD = 0.5
# `started` in a record is the service's own clock reading, a moment after we forked it; it may be rounded.
_SLACK = 1.0


class Probes:
    """Looks at one stack from outside, as a client of it would."""

    def __init__(self, layout: Layout, clock: Clock) -> None:
        self._layout = layout
        self._clock = clock
        self._settings = layout.settings()
        self._store: EtcdStore | None = None
        self._resolver: Resolver | None = None
        self.views: Mapping[str, View] = {}

    async def etcd(self, _: Process | None = None) -> str:
        """Wait for a linearizable read to succeed; return etcd's address."""
        while True:
            async with EtcdStore.from_settings(self._settings) as store:
                with suppress(StoreError):
                    await store.get(f"{self._settings.prefix}/probe")
                    return str(self._layout.etcd)
            await self._clock.sleep(_PERIOD)

    def follow(self) -> None:
        """Follow the registrations from now on."""
        self._store = EtcdStore.from_settings(self._settings)
        self._resolver = Resolver(self._store, self._settings.prefix)
        self._resolver.subscribe_all(self._see)

    async def instance(self, process: Process) -> str:
        """Wait until the process is registered as READY and its health is SERVING; return its address."""
        while True:
            for candidate in self.registered(process):
                if candidate.state is State.READY:
                    async with health.open_channel(candidate.endpoint, self._settings.tls) as channel:
                        if await health.is_serving(channel):
                            return str(candidate.endpoint)
            await self._clock.sleep(_PERIOD)

    async def control_plane(self, _: Process) -> str:
        """Wait until the control plane accepts a connection; return its address."""
        while not await health.connects(self._layout.control_plane, self._settings.tls):
            await self._clock.sleep(_PERIOD)
        return str(self._layout.control_plane)

    async def envoy(self, _: Process) -> str:
        """Wait until Envoy is live and has a healthy endpoint for every service; return the edge's address."""
        while await health.fetch(self._layout.admin, "/ready") is None:
            await self._clock.sleep(_PERIOD)
        while not await self._is_routed():
            await self._clock.sleep(_PERIOD)
        return str(self._layout.edge)

    def registered(self, process: Process) -> list[Instance]:
        """Return what this very process has registered: under the id it was given, or at a port that it listens on."""
        known = [i for view in self.views.values() for i in view.instances]
        mine = [i for i in known if i.id == process.name and not 0 < i.started < process.spawned_at - _SLACK]
        if mine or process.pid is None:
            return mine
        if any(i.id != process.name for i in known):
            bound = set(ports.listening(process.pid))
            return [i for i in known if i.endpoint.port in bound]
        return []

    @property
    def services(self) -> list[str]:
        """Names of the services that have an instance, sorted."""
        return sorted(name for name, view in self.views.items() if view.instances)

    def diagnose(self, process: Process) -> str:
        """Say what is missing for a process to be ready."""
        if process.pid is None:
            return "it does not run"
        bound = ports.listening(process.pid)
        if not bound:
            return "it has not bound a port: it should listen on MESH_LISTEN"
        where = ", ".join(f"{ports.LOOPBACK}:{port}" for port in bound)
        if not self.registered(process):
            return f"it listens on {where} but has not registered: serve with mesh.serve, or start it by `mesh run`"
        return f"it listens on {where} and is registered, but its gRPC health is not SERVING"

    async def contract(self, service: str) -> bytes | None:
        """Return the descriptors that the service's instances name, or None."""
        digests = [i.contract for i in self.views.get(service, View(service)).instances if i.contract]
        if not digests or self._resolver is None:
            return None
        with suppress(StoreError):
            return await self._resolver.contract(digests[0])
        return None

    async def close(self) -> None:
        """Let go of the store."""
        if self._resolver is not None:
            await self._resolver.aclose()
        if self._store is not None:
            await self._store.close()

    def _see(self, views: Mapping[str, View]) -> None:
        self.views = dict(views)

    async def _is_routed(self) -> bool:
        """Whether Envoy has routes and healthy endpoints for every service that has a READY instance."""
        ready = {name: len(view.ready) for name, view in self.views.items() if view.ready}
        healthy = _gauges(await health.fetch(self._layout.admin, "/stats?filter=membership_healthy$") or "")
        if not ready or any(healthy.get(f"cluster.{name}.membership_healthy", 0) < ready[name] for name in ready):
            return False
        # Routes arrive after the clusters, and the transcoder that knows the contracts after the routes.
        routes = await health.fetch(self._layout.admin, "/config_dump?resource=dynamic_route_configs") or ""
        filters = await health.fetch(self._layout.admin, "/config_dump?resource=ecds_filters") or ""
        described = [name for name, view in self.views.items() if any(i.contract for i in view.ready)]
        return all(f"/{name}/" in routes for name in ready) and all(f'"{name}"' in filters for name in described)


def _gauges(page: str) -> dict[str, int]:
    """Read Envoy's "name: value" lines."""
    pairs = (line.rpartition(": ") for line in page.splitlines())
    return {name: int(value) for name, _, value in pairs if value.strip().isdigit()}
