"""The balancer of an operator's override, in a real Envoy and in gRPC's own xDS client."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import grpc
import pytest

from support.counted import counted
from support.front import SERVICE, Front
from users.v1 import users_pb2, users_pb2_grpc

BY_TENANT = b'{"balancer": {"kind": "KIND_CONSISTENT_HASH", "hashMetadata": "x-tenant"}}'
OTHERS = (
    b'{"balancer": {"kind": "KIND_LEAST_LOADED", "slowStart": "1s"}}',
    b'{"balancer": {"kind": "KIND_WEIGHTED", "loadReports": true, "slowStart": "1s"}}',
)

_CLIENT = """
import asyncio, sys, grpc
from users.v1 import users_pb2, users_pb2_grpc

async def main():
    async with grpc.aio.insecure_channel("xds:///users.v1.UserService") as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        for line in sys.stdin:
            for _ in range(6):
                metadata = [("x-tenant", line.strip())]
                await stub.ListUsers(users_pb2.ListUsersRequest(), timeout=10, wait_for_ready=True, metadata=metadata)
            print("done", flush=True)

asyncio.run(main())
"""


def refusals() -> float:
    return sum(counted("mesh_xds_nacks_total", type=kind) for kind in ("LDS", "RDS", "CDS", "EDS"))


def calls(front: Front) -> list[int]:
    return [tiny.servicer.calls for tiny in front.tiny]


def gained(front: Front, before: list[int]) -> list[int]:
    return sorted(now - then for now, then in zip(calls(front), before, strict=True))


async def through_envoy(front: Front, tenant: str) -> list[int]:
    before = calls(front)
    async with grpc.aio.insecure_channel(front.address) as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        for _ in range(6):
            await stub.ListUsers(users_pb2.ListUsersRequest(), timeout=5, metadata=[("x-tenant", tenant)])
    return gained(front, before)


def test_envoy_keeps_a_key_with_one_instance_and_takes_every_balancer(tmp_path: Path) -> None:
    async def story() -> None:
        before = refusals()
        async with Front(tmp_path, instances=3) as front:
            front.views.set_policy(SERVICE, BY_TENANT)
            async with asyncio.timeout(20):
                while await through_envoy(front, "a") != [0, 0, 6]:
                    await asyncio.sleep(0.05)
            for tenant in "bcdef":
                assert await through_envoy(front, tenant) == [0, 0, 6]
            for policy in OTHERS:
                front.views.set_policy(SERVICE, policy)
                async with asyncio.timeout(20):
                    while 0 in await through_envoy(front, "a"):
                        await asyncio.sleep(0.05)
        assert refusals() == before

    asyncio.run(story())


@pytest.mark.parametrize("policy", [BY_TENANT, *OTHERS])
def test_grpcs_own_xds_client_takes_every_balancer(tmp_path: Path, policy: bytes) -> None:
    async def story() -> None:
        before = refusals()
        async with Front(tmp_path, instances=2) as front:
            front.views.set_policy(SERVICE, policy)
            server = {
                "server_uri": str(front.plane.endpoint),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
            bootstrap = json.dumps({"xds_servers": [server], "node": {"id": "proxyless"}})
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _CLIENT),
                env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                for tenant in "abcdef":
                    then = calls(front)
                    process.stdin.write(f"{tenant}\n".encode())
                    async with asyncio.timeout(20):
                        assert await process.stdout.readline() == b"done\n"
                    assert sum(gained(front, then)) == 6
                    if policy == BY_TENANT:
                        assert gained(front, then) == [0, 6]
            finally:
                process.kill()
                await process.wait()
        assert refusals() == before

    asyncio.run(story())
