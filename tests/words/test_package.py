"""What is installed: the core needs none of the extras, and what the commands read from a wheel is put into it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Serves and calls, both ways, where nothing but the core can be imported.
CORE_ALONE = """
import asyncio, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(tuple(sys.argv[1].split())):
            raise ModuleNotFoundError(f"no module named {name}", name=name)

sys.meta_path.insert(0, Missing())
import mesh
from users.v1 import users_pb2, users_pb2_grpc

class Users(users_pb2_grpc.UserServiceServicer):
    async def GetUser(self, request, context):
        return users_pb2.User(id=request.id)

def blocking(address):
    with mesh.blocking.connect("users.v1.UserService", endpoints=[address]) as channel:
        return users_pb2_grpc.UserServiceStub(channel).GetUser(users_pb2.GetUserRequest(id="two"), timeout=10).id

async def story():
    async with mesh.Server(Users(), store=mesh.MemoryStore(), settings=mesh.Settings(settle=0.0)) as server:
        address = str(server.endpoint)
        async with mesh.connect("users.v1.UserService", endpoints=[address]) as channel:
            stub = users_pb2_grpc.UserServiceStub(channel)
            print((await stub.GetUser(users_pb2.GetUserRequest(id="one"), timeout=10)).id)
        print(await asyncio.to_thread(blocking, address))

asyncio.run(story())
"""
EXTRAS = "click rich envoy xds udpa cryptography yaml grpc_tools asyncpg opentelemetry.sdk opentelemetry.exporter"


def test_the_core_serves_and_calls_without_any_extra() -> None:
    done = subprocess.run([sys.executable, "-c", CORE_ALONE, EXTRAS], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.returncode) == (["one", "two"], 0), done.stderr


def test_a_wheel_is_given_the_files_that_commands_read() -> None:
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert target["force-include"] == {
        "envoy/front.yaml": "mesh/cli/front.yaml",  # mesh.cli.programs.front_file
        "proto/grpcmesh/v1/policy.proto": "grpcmesh/v1/policy.proto",  # mesh.cli.gen.includes
    }
    for source in (*target["force-include"], *target["packages"]):
        assert (ROOT / source).exists(), source
