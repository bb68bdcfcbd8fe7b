"""Records in etcd that nobody should follow: not one call on either road goes wrong because of them."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import grpc
import pytest

import mesh
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint
from mesh.registry import record
from mesh.settings import Settings
from support.entrances import SERVICE
from support.stack import NETWORKS, Stack
from users.v1.users_pb2 import ListUsersRequest
from users.v1.users_pb2_grpc import UserServiceStub

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]

KEY = f"{record.service_prefix('mesh', SERVICE)}strange"
CALLS = 60


def settings(stack: Stack) -> Settings:
    """A client's settings with the stack's allow-list."""
    return Settings.from_env({**stack.environment, "MESH_NETWORKS": NETWORKS})


@asynccontextmanager
async def registered(stack: Stack, values: Mapping[str, bytes]) -> AsyncIterator[None]:
    """Put records, and take them away again."""
    async with EtcdStore.from_settings(settings(stack)) as store:
        for key, value in values.items():
            await store.put(key, value)
        try:
            yield
        finally:
            for key in values:
                await store.delete(key)


async def call_both_roads(stack: Stack) -> None:
    """Every call is answered well, and none takes as long as a lost one would."""
    async with mesh.connect(SERVICE, settings=settings(stack)) as ours, grpc.aio.insecure_channel(stack.edge) as edge:
        for channel in (ours, edge):
            stub = UserServiceStub(channel)
            await stub.ListUsers(ListUsersRequest(page_size=1), timeout=10)
            for _ in range(CALLS):
                begin = time.monotonic()
                await stub.ListUsers(ListUsersRequest(page_size=1), timeout=5)
                assert time.monotonic() - begin < 1.0


async def like_an_instance(stack: Stack, endpoint: Endpoint) -> bytes:
    """A record like the others', but for where it points."""
    async with EtcdStore.from_settings(settings(stack)) as store:
        entries = (await store.list(record.service_prefix("mesh", SERVICE))).entries
    example = next(record.decode(key, entry.value, "mesh") for key, entry in entries.items())
    return record.encode(example._replace(id="strange", endpoint=endpoint))


def deserted_port() -> int:
    """A port where an instance could be, and nobody is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    "where", ["nobody listens", "outside the networks", "control plane", "etcd", "Envoy's admin page"]
)
def test_no_call_fails_for_a_record_that_points(where: str, stack: Stack) -> None:
    addresses = {
        "nobody listens": f"127.0.0.1:{deserted_port()}",
        "outside the networks": "10.255.255.1:50051",
        "control plane": stack.control_plane,
        "etcd": stack.etcd,
        "Envoy's admin page": stack.admin,
    }

    async def story() -> None:
        value = await like_an_instance(stack, Endpoint.parse(addresses[where]))
        async with registered(stack, {KEY: value}):
            await call_both_roads(stack)

    asyncio.run(story())


POISON = {
    "no JSON": b"\xff\xfe{",
    "an array": b"[1,2,3]",
    "wrong types": json.dumps({"Op": "x", "Addr": 7, "Metadata": [1]}).encode(),
    "a port of 99999": json.dumps({"Op": 0, "Addr": "127.0.0.1:99999", "Metadata": {}}).encode(),
    "no address": json.dumps({"Op": 0}).encode(),
    "empty": b"",
    "a megabyte": b"x" * 1_000_000,
    "deep": b"[" * 100_000,
}


def test_no_call_fails_for_poisoned_records(stack: Stack) -> None:
    async def story() -> None:
        values = {f"{KEY}-{number}": value for number, value in enumerate(POISON.values())}
        names = {"mesh/services//x": b"{}", "mesh/services/../x": b"{}", "mesh/services/a/b/c": b"{}"}
        async with registered(stack, values | names):
            await call_both_roads(stack)

    asyncio.run(story())
