"""gRPC's own xDS client against the control plane: `xds:///users.v1.UserService`, no Envoy between."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from mesh.controlplane import ControlPlane
from mesh.instance import Instance
from support.counted import counted
from support.front import SERVICE, Tiny
from support.views import Views, instance

# Calls at a steady rate, says so, and tells how many failed once it is told to stop.
_CLIENT = """
import asyncio, sys, grpc
from users.v1 import users_pb2, users_pb2_grpc

async def main():
    stop = asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    calls = failed = 0
    async with grpc.aio.insecure_channel("xds:///users.v1.UserService") as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        while not stop.done():
            try:
                await stub.ListUsers(users_pb2.ListUsersRequest(), timeout=10, wait_for_ready=calls == 0)
            except grpc.aio.AioRpcError as e:
                failed += 1
                print(e.code(), e.details(), file=sys.stderr)
            calls += 1
            if calls == 1:
                print("ready", flush=True)
            await asyncio.sleep(0.005)
    print(calls, failed, flush=True)

asyncio.run(main())
"""


async def client(folder: Path, plane: ControlPlane) -> asyncio.subprocess.Process:
    server = {
        "server_uri": str(plane.endpoint),
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3"],
    }
    bootstrap = json.dumps({"xds_servers": [server], "node": {"id": "proxyless"}})
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CLIENT,
        env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().strip()


async def finish(process: asyncio.subprocess.Process) -> tuple[int, int, str]:
    async with asyncio.timeout(30):
        out, err = await process.communicate(b"\n")
    calls, failed = map(int, out.split())
    return calls, failed, err.decode()


async def gain(*instances: Tiny) -> None:
    """Wait until each of them has had so many calls more that one with a share would have had some of them, too."""
    before = [tiny.servicer.calls for tiny in instances]
    async with asyncio.timeout(20):
        while not all(tiny.servicer.calls >= then + 20 for tiny, then in zip(instances, before, strict=True)):
            await asyncio.sleep(0.02)


def refusals() -> float:
    return sum(counted("mesh_xds_nacks_total", type=kind) for kind in ("LDS", "RDS", "CDS", "EDS"))


def test_proxyless_client_follows_the_registry_without_a_failed_call(tmp_path: Path) -> None:
    async def story() -> None:
        views = Views()
        contract = views.add_contract(SERVICE)

        def at(number: int, tiny: Tiny) -> Instance:
            return instance(SERVICE, number, tiny.port, contract=contract)

        async with Tiny() as one, Tiny() as two, Tiny() as three, ControlPlane(views) as plane:
            views.set(SERVICE, at(1, one), at(2, two))
            before = refusals()
            process = await client(tmp_path, plane)
            try:
                assert await line(process) == "ready"
                views.set(SERVICE, at(1, one), at(2, two), at(3, three))
                async with asyncio.timeout(10):
                    while not all(tiny.servicer.calls > 20 for tiny in (one, two, three)):
                        await asyncio.sleep(0.02)
                views.set(SERVICE, at(2, two), at(3, three))
                settled = -1
                while settled != one.servicer.calls:
                    settled = one.servicer.calls
                    await gain(two, three)
                await gain(two, three)
                assert one.servicer.calls == settled
                calls, failed, told = await finish(process)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert calls > 60
            assert failed == 0, told
            assert refusals() == before

    asyncio.run(story())


def test_proxyless_client_keeps_calling_while_the_control_plane_is_away(tmp_path: Path) -> None:
    async def story() -> None:
        views = Views()
        contract = views.add_contract(SERVICE)
        async with Tiny() as one:
            views.set(SERVICE, instance(SERVICE, 1, one.port, contract=contract))
            async with ControlPlane(views) as plane:
                address = str(plane.endpoint)
                process = await client(tmp_path, plane)
                assert await line(process) == "ready"
            await gain(one)
            async with ControlPlane(views, address):
                async with asyncio.timeout(20):  # its client asks again after a second or more
                    while counted("mesh_xds_streams", client="grpc") == 0:
                        await asyncio.sleep(0.02)
                await gain(one)
                calls, failed, told = await finish(process)
            assert calls > 60
            assert failed == 0, told

    asyncio.run(story())
