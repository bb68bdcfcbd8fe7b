"""Servers to call: `python -m bench.serving KIND`. Prints the address and serves until stdin closes.

plain       a grpc.aio server that answers GetUser with a constant, and streams
mesh        the same servicer on a mesh server, its registry in memory
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from users.v1 import users_pb2, users_pb2_grpc

STREAM = "/bench.Streams/Count"
"""unary-stream: answers the number that the request names, that many times. stream-stream: `ECHO`."""
ECHO = "/bench.Streams/Echo"


class Users(users_pb2_grpc.UserServiceServicer):
    """Answers at once, so that nothing but the road is measured."""

    async def GetUser(self, request: users_pb2.GetUserRequest, context: Any) -> users_pb2.User:
        """Answer with a constant."""
        return users_pb2.User(id=request.id, name="Ada", email="ada@example.org")


async def _count(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield b"0123456789abcdef"


async def _echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


def streams() -> grpc.GenericRpcHandler:
    """Return the handler of both streams."""
    methods: dict[str, Any] = {
        "Count": grpc.unary_stream_rpc_method_handler(_count),
        "Echo": grpc.stream_stream_rpc_method_handler(_echo),
    }
    return grpc.method_handlers_generic_handler("bench.Streams", methods)


async def plain() -> str:
    """Start a plain grpc.aio server; return its address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    users = Users()  # type: ignore[abstract]  # the rest is never called
    users_pb2_grpc.add_UserServiceServicer_to_server(users, server)
    server.add_generic_rpc_handlers((streams(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    _kept.append(server)
    return f"127.0.0.1:{port}"


async def mesh() -> str:
    """Start a mesh server with the same servicer; return its address."""
    from mesh.memory import MemoryStore
    from mesh.server import Server
    from mesh.settings import Settings

    users = Users()  # type: ignore[abstract]  # the rest is never called
    server = Server(users, settings=Settings(), store=MemoryStore())
    await server.start()
    _kept.append(server)
    return str(server.endpoint)


_kept: list[object] = []
KINDS = {"plain": plain, "mesh": mesh}


async def _serve(kind: str) -> None:
    print(await KINDS[kind](), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
