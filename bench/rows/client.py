"""The client's stack with everything on (round robin, retry, breaker, deadline, metrics) beside a bare stub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from bench.measure import Arm, Finding
from bench.row import Spec, measures
from bench.site import Site
from users.v1 import users_pb2, users_pb2_grpc

SERVICE = "users.v1.UserService"
AT_ONCE = 50
_REQUEST = users_pb2.GetUserRequest(id="ada")
Arms = tuple[Arm, Mapping[str, Arm]]


def many(stub: Any, at_once: int = AT_ONCE) -> Callable[[int], Any]:
    """Return what makes calls of GetUser, so many in flight at any time."""

    async def run(calls: int) -> None:
        left = iter(range(calls))

        async def some() -> None:
            for _ in left:
                await stub.GetUser(_REQUEST, timeout=10)

        await asyncio.gather(*(some() for _ in range(at_once)))

    return run


@asynccontextmanager
async def control(job: Mapping[str, Any]) -> AsyncIterator[Arms]:
    """A raw stub and nothing else."""
    async with grpc.aio.insecure_channel(job["address"]) as raw:
        yield Arm(many(users_pb2_grpc.UserServiceStub(raw))), {}


@asynccontextmanager
async def one_arms(job: Mapping[str, Any]) -> AsyncIterator[Arms]:
    """A raw stub, and ours on the same address."""
    import mesh

    async with AsyncExitStack() as stack:
        raw = await stack.enter_async_context(grpc.aio.insecure_channel(job["address"]))
        ours = await stack.enter_async_context(mesh.connect(SERVICE, endpoints=[job["address"]]))
        await ours.channel_ready()
        stubs = [users_pb2_grpc.UserServiceStub(channel) for channel in (raw, ours)]
        yield Arm(many(stubs[0])), {"mesh": Arm(many(stubs[1]))}


@measures(
    Spec(
        "client.one",
        "unary calls to one instance, 50 in flight",
        "a raw grpc.aio stub on its address",
        goal=1.05,
        moonshot=1.00,
        quick=True,
        noise=0.04,
    )
)
def one(site: Site) -> Finding:
    """One instance."""
    _, address = site.serve("plain")
    return site.compare("bench.rows.client:one_arms", {"address": address}, calls=1000).compared("mesh")
