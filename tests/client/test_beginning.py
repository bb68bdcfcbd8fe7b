"""How little a process has loaded when its first call is answered. Modules are named and not timed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Serves UserService by grpc alone, makes a first call by our client, and tells what that has loaded. Then, as a program
# does that has a page of metrics, it imports the library that shows them.
STORY = """
import asyncio, json, sys
import grpc
from users.v1 import users_pb2, users_pb2_grpc

class Users(users_pb2_grpc.UserServiceServicer):
    async def GetUser(self, request, context):
        return users_pb2.User(id=request.id)

async def call(address, id):
    import mesh
    async with mesh.connect("users.v1.UserService", endpoints=[address]) as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        try:
            await stub.GetUser(users_pb2.GetUserRequest(id=id), timeout=10)
        except grpc.RpcError:
            await stub.ListUsers(users_pb2.ListUsersRequest(), timeout=10)
        return set(sys.modules)

async def main():
    server = grpc.aio.server()
    users_pb2_grpc.add_UserServiceServicer_to_server(Users(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    before = set(sys.modules)
    after = await call(address, "ada")
    counts = []
    if sys.argv[1] == "early":
        import prometheus_client
    for number in range(2):
        await call(address, "ada")
        from prometheus_client import REGISTRY
        labels = {"service": "users.v1.UserService", "method": "GetUser"}
        counts.append([
            REGISTRY.get_sample_value("mesh_client_calls_total", {**labels, "code": "OK"}),
            REGISTRY.get_sample_value("mesh_client_attempts_total", {**labels, "code": "OK"}),
            REGISTRY.get_sample_value("mesh_client_call_seconds_count", labels),
            REGISTRY.get_sample_value("mesh_client_endpoints", {"service": "users.v1.UserService", "state": "ready"}),
        ])
    await server.stop(None)
    print(json.dumps({"loaded": sorted(after - before), "counts": counts}))

asyncio.run(main())
"""

# What costs milliseconds, or memory, and is for later: metrics that nobody can read yet, retries before a failure,
# traces that nobody asked for, the registry where endpoints are given, balancers other than turns, the server.
FOR_LATER = (
    *("prometheus_client", "tenacity", "opentelemetry", "click", "grpc_status", "grpc_health", "grpc_reflection"),
    *("http", "urllib", "email", "json", "ipaddress", "pathlib", "hashlib", "tempfile", "concurrent.futures.thread"),
    *("google.protobuf.json_format", "google.rpc", "etcdserverpb", "grpcmesh.v1.load_pb2"),
    *("mesh.balancing.picker", "mesh.balancing.making", "mesh.cli", "mesh.client.balance", "mesh.client.blocking"),
    *("mesh.client.fleet_probe", "mesh.client.streams", "mesh.client.sync", "mesh.client.thread", "mesh.controlplane"),
    *("mesh.credentials", "mesh.etcd", "mesh.memory", "mesh.network", "mesh.registry", "mesh.server"),
    *("mesh.simulation", "mesh.store", "mesh.telemetry.logs", "mesh.telemetry.pages", "mesh.telemetry.spans"),
    *("mesh.client.health", "mesh.xds"),
)


def tell(how: str = "late") -> dict[str, list[object]]:
    done = subprocess.run([sys.executable, "-c", STORY, how], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told: dict[str, list[object]] = json.loads(done.stdout)
    return told


def test_a_first_call_loads_nothing_that_is_for_later() -> None:
    loaded = tell()["loaded"]
    assert "mesh.client.channel" in loaded
    too_early = [name for name in loaded if f"{name}.".startswith(tuple(f"{later}." for later in FOR_LATER))]
    assert too_early == []


@pytest.mark.parametrize("how", ["late", "early"])
def test_calls_made_before_anybody_could_read_metrics_are_counted(how: str) -> None:
    """Endpoints: none is left when the channel is closed."""
    assert tell(how)["counts"] == [[2, 2, 2, 0], [3, 3, 3, 0]]


def test_nothing_of_the_mesh_but_its_page_loads_the_library_of_metrics() -> None:
    story = """
import sys
import mesh, mesh.blocking, mesh.client.blocking, mesh.client.fleet_probe, mesh.controlplane, mesh.etcd, mesh.server
from mesh.registry import registrar, resolver
print("prometheus_client" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.returncode) == (["False"], 0), done.stderr
