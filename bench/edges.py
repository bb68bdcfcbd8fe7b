"""What stands behind the edges: `python -m bench.edges [PORT]`. A control plane, and, unless one listens at that port
already, a service that answers with a constant. Prints both addresses, and serves until its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

import bench  # noqa: F401  makes `support` importable
from mesh.controlplane import ControlPlane
from support.views import Views, instance
from users.v1 import users_pb2, users_pb2_grpc

SERVICE = "users.v1.UserService"
_THEN = Timestamp(seconds=1_760_000_000, nanos=123_456_000)


class Users(users_pb2_grpc.UserServiceServicer):
    """Answers at once with what the reference service would say."""

    async def GetUser(self, request: Any, context: Any) -> Any:
        """Answer with a constant."""
        return _user(request.id, "Ada Lovelace", "ada@example.org")

    async def CreateUser(self, request: Any, context: Any) -> Any:
        """Answer with what was sent."""
        return _user(request.user.id or "made-here", request.user.name, request.user.email)


def answer() -> bytes:
    """Return what the service says, as bytes."""
    told: bytes = _user("ada", "Ada Lovelace", "ada@example.org").SerializeToString()
    return told


def _user(number: str, name: str, email: str) -> Any:
    return users_pb2.User(
        id=number, name=name, email=email, create_time=_THEN, update_time=_THEN, etag="W-0123456789abcdef"
    )


async def _service() -> int:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    users_pb2_grpc.add_UserServiceServicer_to_server(Users(), server)
    healthy = health.HealthServicer()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _kept.append(server)
    return port


async def _serve(port: int) -> None:
    port = port or await _service()
    views = Views()
    views.set(SERVICE, instance(SERVICE, 1, port, contract=views.add_contract(SERVICE)))
    async with ControlPlane(views) as plane:
        print(json.dumps({"service": f"127.0.0.1:{port}", "plane": str(plane.endpoint)}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


_kept: list[object] = []

if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]) if sys.argv[1:] else 0))
