"""An edge around a tiny UserService: instances in this process, a control plane fed by hand, a real Envoy."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from mesh.controlplane import ControlPlane
from mesh.credentials import server_credentials
from mesh.instance import Instance
from mesh.settings import TLSFiles
from support.envoy import Envoy
from support.views import Views, instance
from users.v1 import users_pb2, users_pb2_grpc

SERVICE = "users.v1.UserService"


class TinyUsers(users_pb2_grpc.UserServiceServicer):
    """Keeps users in a dictionary and does as the id says: "slow-2" answers after two seconds."""

    def __init__(self) -> None:
        self.users: dict[str, users_pb2.User] = {}
        self.metadata: dict[str, str] = {}
        self.left: float | None = None
        self.calls = 0

    async def CreateUser(self, request: Any, context: Any) -> Any:
        self._note(context)
        self.users[request.user.id] = request.user
        return request.user

    async def GetUser(self, request: Any, context: Any) -> Any:
        self._note(context)
        if request.id.startswith("slow-"):
            await asyncio.sleep(float(request.id.removeprefix("slow-")))
            return users_pb2.User(id=request.id)
        if request.id not in self.users:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such user")
        return self.users[request.id]

    async def ListUsers(self, request: Any, context: Any) -> Any:
        self._note(context)
        return users_pb2.ListUsersResponse(users=self.users.values())

    async def WatchUsers(self, request: Any, context: Any) -> Any:
        for user in list(self.users.values()):
            yield users_pb2.WatchUsersResponse(user=user, change=users_pb2.WatchUsersResponse.CHANGE_CREATED)

    def _note(self, context: Any) -> None:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        self.left = context.time_remaining()


class Tiny:
    """One instance, with health."""

    def __init__(self, servicer: TinyUsers | None = None, tls: TLSFiles | None = None) -> None:
        self.servicer = servicer or TinyUsers()
        self._tls = tls
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        users_pb2_grpc.add_UserServiceServicer_to_server(self.servicer, self._server)
        healthy = health.HealthServicer()
        await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, self._server)
        if self._tls is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", server_credentials(self._tls))
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


class Front:
    """One tiny instance behind an Envoy; `views` moves what the control plane knows."""

    def __init__(self, folder: Path, tls: TLSFiles | None = None, instances: int = 1) -> None:
        self.views = Views()
        self.contract = self.views.add_contract(SERVICE)
        self.tiny = [Tiny(tls=tls) for _ in range(instances)]
        self.plane = ControlPlane(self.views, credentials=server_credentials(tls) if tls else None)
        self.envoy: Envoy
        self._folder, self._tls = folder, tls
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where callers go."""
        return str(self.envoy.edge)

    def instances(self) -> list[Instance]:
        """The instances as the registry would tell them."""
        return [instance(SERVICE, n, tiny.port, contract=self.contract) for n, tiny in enumerate(self.tiny)]

    async def __aenter__(self) -> Self:
        async with self._stack:
            for tiny in self.tiny:
                await self._stack.enter_async_context(tiny)
            self.views.set(SERVICE, *self.instances())
            await self._stack.enter_async_context(self.plane)
            self.envoy = Envoy(self._folder, self.plane.endpoint, tls=self._tls)
            self._stack.enter_context(self.envoy)
            await asyncio.to_thread(self.envoy.wait_ready)
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(asyncio.CancelledError):
            await self._stack.aclose()
