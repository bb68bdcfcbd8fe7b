"""How soon a new instance has work: the moment its key is put, until its first call arrives, while callers call."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import mesh
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, Instance, State
from mesh.registry import record
from mesh.settings import Settings
from support.entrances import SERVICE
from support.stack import Stack
from users.v1.users_pb2 import GetUserRequest, User
from users.v1.users_pb2_grpc import UserServiceServicer, UserServiceStub, add_UserServiceServicer_to_server

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.xdist_group("stack")]

ROUNDS = 10
CALLERS = 4


class Newcomer(UserServiceServicer):
    """Knows when it was called first."""

    def __init__(self) -> None:
        self.called: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def GetUser(self, request: Any, context: Any) -> User:
        if not self.called.done():
            self.called.set_result(time.monotonic())
        return User(id=request.id)


@asynccontextmanager
async def serving(newcomer: Newcomer) -> AsyncIterator[Endpoint]:
    """Serve, unregistered, with health SERVING."""
    server = grpc.aio.server()
    add_UserServiceServicer_to_server(newcomer, server)
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    await servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Endpoint("127.0.0.1", port)
    await server.stop(1.0)


@asynccontextmanager
async def calling(channel: grpc.aio.Channel) -> AsyncIterator[None]:
    """Call without a pause; a call that fails fails the test."""
    stub = UserServiceStub(channel)
    over = asyncio.Event()

    async def caller() -> None:
        while not over.is_set():
            try:
                await stub.GetUser(GetUserRequest(id="nobody"), timeout=10)
            except grpc.aio.AioRpcError as e:
                assert e.code() == grpc.StatusCode.NOT_FOUND, e  # noqa: PT017  any other error must fail the test

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
        yield
        over.set()


async def seconds_until_called(store: EtcdStore, example: Instance, number: int) -> float:
    """Register a newcomer, wait for its first call, and take it away again in order."""
    newcomer = Newcomer()
    async with serving(newcomer) as endpoint:
        instance = example._replace(id=f"newcomer-{number}", endpoint=endpoint, started=time.time())
        key = record.instance_key("mesh", instance)
        begin = time.monotonic()
        await store.put(key, record.encode(instance))
        try:
            return await asyncio.wait_for(asyncio.shield(newcomer.called), 10) - begin
        finally:
            await store.put(key, record.encode(instance._replace(state=State.DRAINING)))
            await asyncio.sleep(0.3)
            await store.delete(key)


async def median(stack: Stack, connect: Callable[[], grpc.aio.Channel]) -> float:
    """The median of some rounds."""
    async with EtcdStore.from_settings(Settings.from_env(stack.environment)) as store, connect() as channel:
        entries = (await store.list(record.service_prefix("mesh", SERVICE))).entries
        example = next(record.decode(key, entry.value, "mesh") for key, entry in entries.items())
        async with calling(channel):
            taken = [await seconds_until_called(store, example, number) for number in range(ROUNDS)]
    print(" ".join(f"{seconds * 1e3:.0f}" for seconds in sorted(taken)), "ms")
    return statistics.median(taken)


def test_new_instance_has_its_first_call_from_a_mesh_client_within_50_ms(stack: Stack) -> None:
    settings = Settings.from_env(stack.environment)

    taken = asyncio.run(median(stack, lambda: mesh.connect(SERVICE, settings=settings)))

    assert taken <= 0.050


def test_new_instance_has_its_first_call_through_envoy_within_250_ms(stack: Stack) -> None:
    taken = asyncio.run(median(stack, lambda: grpc.aio.insecure_channel(stack.edge)))

    assert taken <= 0.250
