"""grpc.health.v1 for a server whose health is set by one hand, without ever waiting for a watcher.

Not grpc_health's own asyncio servicer: that one writes to its watchers while it holds the lock that a change of status
needs, so one watcher that does not read keeps the server from ever being NOT_SERVING.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import Refusal
from mesh.server.errors import DOMAIN

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health ships no types
    """Tells whether each service, and the server as a whole (""), wants calls. All share one status.

    The state is touched in the event loop only.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = frozenset(["", *services])
        self._status = _Status.NOT_SERVING
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether the server wants calls."""
        return bool(self._status == _Status.SERVING)

    def set(self, serving: bool) -> None:
        """Change the status of all services; watchers are told as fast as they read."""
        self._status = _Status.SERVING if serving else _Status.NOT_SERVING
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:
        """Answer with the status now. Returns NOT_FOUND for a service that is not here."""
        if request.service not in self._names:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "This server has no such service.", "UNKNOWN_SERVICE", DOMAIN)
        return _Status(status=self._status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Answer with the status now and whenever it changes; SERVICE_UNKNOWN for a service that is not here."""
        told = None
        while True:
            changed = self._changed
            status = self._status if request.service in self._names else _Status.SERVICE_UNKNOWN
            if status != told:
                yield _Status(status=status)
                told = status
            if changed is self._changed:
                await changed.wait()
