"""The edge's arms: the same calls as JSON and as gRPC through Envoy, and as JSON through a gateway in Python.

A closed loop: so many connections, one call at a time on each, for HTTP/1.1 and for gRPC alike.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from bench import openloop
from bench.http1 import Connection, request
from bench.measure import Arm
from users.v1 import users_pb2, users_pb2_grpc

CONNECTIONS = 16
_BODY = b'{"name": "Ada Lovelace", "email": "ada@example.org"}'
_USER = users_pb2.User(name="Ada Lovelace", email="ada@example.org")
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)

Job = Mapping[str, Any]
Arms = tuple[Arm, Mapping[str, Arm]]
Call = Callable[[], Awaitable[object]]


@asynccontextmanager
async def get(job: Job) -> AsyncIterator[Arms]:
    """GetUser."""
    async with _three(job, "get") as arms:
        yield arms


@asynccontextmanager
async def create(job: Job) -> AsyncIterator[Arms]:
    """CreateUser."""
    async with _three(job, "create") as arms:
        yield arms


@asynccontextmanager
async def fed(job: Job) -> AsyncIterator[Arms]:
    """JSON through an Envoy of a static file, and through one that a control plane feeds."""
    async with AsyncExitStack() as stack:
        fixed = await _json(stack, job["fixed"], "get")
        ours = await _json(stack, job["edge"], "get")
        yield Arm(_loop(fixed), [job["fixed_pid"]]), {"fed": Arm(_loop(ours), [job["edge_pid"]])}


def latency(job: Job) -> dict[str, Any]:
    """Measure latency of JSON at a fixed rate: the gateway, Envoy, and the gateway again."""
    return openloop.run(_latency(job))


async def _latency(job: Job) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        where = {"gateway": job["gateway"], "envoy": job["edge"], "again": job["gateway"]}
        arms = {name: _any_free(await _json(stack, address, "get")) for name, address in where.items()}
        found = await openloop.drive(arms, rate=job["rate"], seconds=job["seconds"])
    return {name: latencies.to_json() for name, latencies in found.items()}


@asynccontextmanager
async def _three(job: Job, method: str) -> AsyncIterator[Arms]:
    async with AsyncExitStack() as stack:
        stubs = [await _stub(stack, job["edge"]) for _ in range(CONNECTIONS)]
        grpc_calls = [_grpc(stub, method) for stub in stubs]
        json_calls = await _json(stack, job["edge"], method)
        gateway_calls = await _json(stack, job["gateway"], method)
        envoy, gateway = [job["edge_pid"]], [job["gateway_pid"]]
        yield (
            Arm(_loop(grpc_calls), envoy),
            {
                "json": Arm(_loop(json_calls), envoy),
                "gateway": Arm(_loop(gateway_calls), gateway),
                "shared": Arm(_loop(grpc_calls[:1] * CONNECTIONS), envoy),
            },
        )


async def _stub(stack: AsyncExitStack, address: str) -> Any:
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OWN_CONNECTION))
    await channel.channel_ready()
    return users_pb2_grpc.UserServiceStub(channel)


def _grpc(stub: Any, method: str) -> Call:
    if method == "get":
        return lambda: stub.GetUser(users_pb2.GetUserRequest(id="ada"), timeout=10)
    return lambda: stub.CreateUser(users_pb2.CreateUserRequest(user=_USER), timeout=10)


async def _json(stack: AsyncExitStack, address: str, method: str) -> list[Call]:
    if method == "get":
        message = request("GET", "/v1/users/ada", address)
    else:
        message = request("POST", "/v1/users", address, _BODY)
    connections = [await Connection.open(address) for _ in range(CONNECTIONS)]
    for connection in connections:
        stack.callback(connection.close)
    return [_asking(connection, message) for connection in connections]


def _asking(connection: Connection, message: bytes) -> Call:
    return lambda: connection.ask(message)


def _loop(calls: list[Call]) -> Callable[[int], Awaitable[object]]:
    """Return what makes n calls over these connections, the next on each when the one before was answered."""

    async def run(count: int) -> None:
        left = itertools.repeat(None, count)

        async def some(call: Call) -> None:
            for _ in left:
                await call()

        await asyncio.gather(*map(some, calls))

    return run


def _any_free(calls: list[Call]) -> Call:
    """Return what calls over whichever connection is free, and waits for one if none is."""
    free: asyncio.Queue[Call] = asyncio.Queue()
    for call in calls:
        free.put_nowait(call)

    async def run() -> None:
        call = await free.get()
        try:
            await call()
        finally:
            free.put_nowait(call)

    return run
