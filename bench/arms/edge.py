"""The edge's arms: the same calls as JSON and as gRPC through Envoy, and as JSON through a gateway in Python.

A closed loop: so many connections, one call at a time on each, for HTTP/1.1 and for gRPC alike.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from bench import http1, http2, openloop
from bench.edges import SERVICE
from bench.http1 import request
from bench.measure import Arm
from users.v1 import users_pb2

CONNECTIONS = 32
_BODY = b'{"name": "Ada Lovelace", "email": "ada@example.org"}'
_USER = users_pb2.User(name="Ada Lovelace", email="ada@example.org")
_MESSAGES = {
    "get": ("GetUser", users_pb2.GetUserRequest(id="ada")),
    "create": ("CreateUser", users_pb2.CreateUserRequest(user=_USER)),
}

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
        where = {**job["files"], "fed": (job["edge"], job["edge_pid"])}
        fixed, ours = [Arm(_loop(await _json(stack, address, "get")), [pid]) for address, pid in where.values()]
        yield fixed, {"fed": ours}


@asynccontextmanager
async def parts(job: Job) -> AsyncIterator[Arms]:
    """JSON through Envoys of files that leave out one part or another; the first is the baseline."""
    async with AsyncExitStack() as stack:
        arms = {
            name: Arm(_loop(await _json(stack, address, job["method"])), [pid])
            for name, (address, pid) in job["files"].items()
        }
        yield arms.pop(next(iter(arms))), arms


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
        grpc_calls = await _grpc(stack, job["edge"], method)
        json_calls = await _json(stack, job["edge"], method)
        gateway_calls = await _json(stack, job["gateway"], method)
        envoy, gateway = [job["edge_pid"]], [job["gateway_pid"]]
        yield (
            Arm(_loop(grpc_calls), envoy),
            {"json": Arm(_loop(json_calls), envoy), "gateway": Arm(_loop(gateway_calls), gateway)},
        )


async def _grpc(stack: AsyncExitStack, address: str, method: str) -> list[Call]:
    name, message = _MESSAGES[method]
    connections = [await http2.Connection.open(address, f"/{SERVICE}/{name}") for _ in range(CONNECTIONS)]
    for connection in connections:
        stack.callback(connection.close)
    return [functools.partial(connection.ask, message.SerializeToString()) for connection in connections]


async def _json(stack: AsyncExitStack, address: str, method: str) -> list[Call]:
    if method == "get":
        message = request("GET", "/v1/users/ada", address)
    else:
        message = request("POST", "/v1/users", address, _BODY)
    connections = [await http1.Connection.open(address) for _ in range(CONNECTIONS)]
    for connection in connections:
        stack.callback(connection.close)
    return [functools.partial(connection.ask, message) for connection in connections]


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
