"""EchoService on a mesh server inside the test, and a raw look at what it answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from mesh.memory import MemoryStore
from mesh.server import Server
from mesh.settings import Settings
from support.echo import EchoServicer, EchoServiceStub

QUICK = Settings(drain=1.0, settle=0.0, instance_id="echo-1")


@asynccontextmanager
async def echo_server(
    settings: Settings = QUICK, servicer: object | None = None, **arguments: Any
) -> AsyncIterator[Server]:
    """Serve EchoService, registered in a memory store unless another is given."""
    store = arguments.pop("store", None) or MemoryStore()
    async with Server(servicer or EchoServicer("echo-1"), settings=settings, store=store, **arguments) as server:
        yield server


@asynccontextmanager
async def echo(settings: Settings = QUICK, **arguments: Any) -> AsyncIterator[tuple[Any, grpc.aio.Channel]]:
    """Give a stub and its plain channel to such a server."""
    async with echo_server(settings, **arguments) as server, plain_channel(server) as channel:
        yield EchoServiceStub(channel), channel


@asynccontextmanager
async def plain_channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """Open a grpc channel that hides nothing: no retries, messages of any size."""
    options = [("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(str(server.endpoint), options=options) as channel:
        yield channel


async def error_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """Await a call that has to fail and return how; the rest of a stream is read first."""
    try:
        result = await _all(call) if hasattr(call, "__aiter__") else await call
    except grpc.aio.AioRpcError as e:
        return e
    raise AssertionError(f"the call was answered with {result!r}")


async def _all(stream: Any) -> list[Any]:
    return [item async for item in stream]
