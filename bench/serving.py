"""Servers to call: `python -m bench.serving KIND`. Prints the address and serves until stdin closes.

plain       a grpc.aio server that answers GetUser with a constant, and streams
mesh        the same servicer on a mesh server, its registry in memory
users URL   UserService on a mesh server, over the database of the URL, which has the user "ada"
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
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


async def users(url: str) -> str:
    """Start UserService over a database; return its address."""
    from mesh.memory import MemoryStore
    from mesh.server import Server
    from mesh.settings import Settings
    from usersvc.database import open_store
    from usersvc.servicer import UserService
    from usersvc.writes import Create

    store = await open_store(url)
    if await store.get("ada") is None:
        await store.write(Create(users_pb2.User(id="ada", name="Ada", email="ada@example.org")))
    server = Server(UserService(store), settings=Settings(), store=MemoryStore())
    await server.start()
    _kept.append(server)
    return str(server.endpoint)


_kept: list[object] = []
KINDS: dict[str, Callable[..., Awaitable[str]]] = {"plain": plain, "mesh": mesh, "users": users}


async def _serve(kind: str, *args: str) -> None:
    print(await KINDS[kind](*args), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
