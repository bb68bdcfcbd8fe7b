"""The control plane as a server: binds the port, answers ADS, reflection for the whole mesh, and health."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from mesh.clock import Clock
from mesh.controlplane.ads import add_discovery
from mesh.controlplane.plane import Plane, Source
from mesh.controlplane.reflection import add_reflection
from mesh.errors import SettingsError
from mesh.instance import Endpoint
from mesh.wallclock import CLOCK

_log = logging.getLogger("mesh.controlplane")

_OPTIONS = (
    # Two servers would share a port in silence.
    ("grpc.so_reuseport", 0),
    # A request is a list of names.
    ("grpc.max_receive_message_length", 1024 * 1024),
    # front.yaml's Envoy pings every ten seconds, on a stream that is silent for hours.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A client that vanished without a word is noticed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)
_MAX_STREAMS = 2000


class ControlPlane:
    """Serves what `source` knows. `async with` starts and stops it; `endpoint` is where it listens."""

    def __init__(
        self,
        source: Source,
        listen: str = "127.0.0.1:0",
        *,
        credentials: grpc.ServerCredentials | None = None,
        reflection: bool = True,
        clock: Clock = CLOCK,
    ) -> None:
        self.plane = Plane(source, reflection=reflection, clock=clock)
        self.endpoint = Endpoint("127.0.0.1", 0)
        self._listen = listen
        self._credentials = credentials
        self._reflection = reflection
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Bind and begin; raise SettingsError if the address cannot be had."""
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MAX_STREAMS)
        add_discovery(self.plane, f"mesh control plane {self._listen}", server)
        if self._reflection:
            add_reflection(self.plane, server)
        healthy = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
        self.endpoint = Endpoint(self._listen.rpartition(":")[0], self._bind(server))
        self.plane.start()
        await server.start()
        self._server = server
        _log.info("control plane on %s", self.endpoint, extra={"event.action": "started"})

    async def stop(self, grace: float = 1.0) -> None:
        """End the streams; clients keep what they have."""
        await self.plane.stop()
        if self._server is not None:
            await self._server.stop(grace)

    def _bind(self, server: grpc.aio.Server) -> int:
        try:
            if self._credentials is None:
                return server.add_insecure_port(self._listen)
            return server.add_secure_port(self._listen, self._credentials)
        except RuntimeError as e:
            raise SettingsError(f"cannot listen on {self._listen}: is the port taken? Choose another one") from e

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
