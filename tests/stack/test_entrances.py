"""Every way in, in plain text and with mutual TLS: curl's JSON, grpcurl, the mesh clients, a proxyless client."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import uuid
from typing import Any

import pytest

import mesh
from mesh import blocking
from mesh.settings import Settings
from support.entrances import SERVICE, ask
from support.grpcurl import Grpcurl
from support.stack import Stack
from users.v1.users_pb2 import CreateUserRequest, GetUserRequest, User, WatchUsersRequest
from users.v1.users_pb2_grpc import UserServiceStub

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]


@pytest.fixture(params=["stack", "tls_stack"], ids=["plain", "tls"])
def each(request: pytest.FixtureRequest) -> Stack:
    """A stack in plain text, and one with mutual TLS."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Stack)
    return found


def curl(stack: Stack, target: str, *arguments: str) -> Any:
    """Run curl as a person would, and return the JSON."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not here")
    tls = stack.tls
    flags = ["--cacert", tls["ca"], "--cert", tls["cert"], "--key", tls["key"]] if tls else []
    url = f"{'https' if tls else 'http'}://{stack.edge}{target}"
    command = [program, "-sS", "-H", "content-type: application/json", *flags, url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fresh() -> dict[str, str]:
    """A user that nobody has made."""
    mark = uuid.uuid4().hex
    return {"id": f"u{mark}", "name": "Zaphod Beeblebrox", "email": f"{mark}@private.example"}


def test_curl_creates_gets_lists_updates_and_deletes(each: Stack) -> None:
    wanted = fresh()
    url = f"/v1/users/{wanted['id']}"

    made = curl(each, "/v1/users", "-d", json.dumps(wanted))
    assert made.items() >= wanted.items()
    assert curl(each, url) == made
    assert curl(each, "/v1/users?page_size=1000")["users"]
    renamed = curl(each, url, "-X", "PATCH", "-d", json.dumps({"name": "Zaphod the First"}))
    assert renamed["name"] == "Zaphod the First"
    assert renamed["email"] == made["email"]
    assert renamed["etag"] != made["etag"]
    assert curl(each, url, "-X", "DELETE") == {}
    assert curl(each, url)["code"] == 5  # NOT_FOUND


def test_curl_creates_and_gets_in_the_plain_form(each: Stack) -> None:
    wanted = fresh()

    made = curl(each, "/users", "-d", json.dumps(wanted))

    assert made.items() >= wanted.items()
    assert curl(each, f"/users?id={wanted['id']}") == made


def test_pages_follow_each_other_without_gap_or_repeat(each: Stack) -> None:
    made = {ask(each.edge, "POST", "/v1/users", fresh(), tls=each.tls).json()["id"] for _ in range(7)}
    size = 997 if each.tls is None else 3  # the drills have left thousands of users on the one
    seen, token = [], ""
    while True:
        page = ask(each.edge, "GET", f"/v1/users?page_size={size}&page_token={token}", tls=each.tls).json()
        seen += [user["id"] for user in page.get("users", [])]
        token = page.get("nextPageToken", "")
        if not token:
            break

    assert len(seen) == len(set(seen))
    assert made <= set(seen)


@pytest.fixture(params=["instance", "edge"])
def grpcurl(request: pytest.FixtureRequest, each: Stack) -> Grpcurl:
    """grpcurl aimed at one instance, or at Envoy."""
    return Grpcurl(each.edge if request.param == "edge" else each.instances[0].address, each.tls)


def test_grpcurl_lists_describes_and_calls_by_reflection(grpcurl: Grpcurl) -> None:
    wanted = fresh()

    assert SERVICE in grpcurl.ask("list").split()
    assert "rpc CreateUser" in grpcurl.ask("describe", SERVICE)
    assert f"{SERVICE}.WatchUsers" in grpcurl.ask("list", SERVICE)
    made = grpcurl.call(f"{SERVICE}/CreateUser", {"user": wanted})
    assert made.items() >= wanted.items()
    assert grpcurl.call(f"{SERVICE}/GetUser", {"id": wanted["id"]}) == made


def test_mesh_client_reaches_every_instance(each: Stack) -> None:
    async def story() -> None:
        async with mesh.connect(SERVICE, settings=Settings.from_env(each.environment)) as channel:
            stub = UserServiceStub(channel)
            made = await stub.CreateUser(CreateUserRequest(user=User(**fresh())))
            for _ in range(12):
                assert await stub.GetUser(GetUserRequest(id=made.id)) == made

    asyncio.run(story())


def test_blocking_client_reaches_the_service(each: Stack) -> None:
    with blocking.connect(SERVICE, settings=Settings.from_env(each.environment)) as channel:
        stub = UserServiceStub(channel)
        made = stub.CreateUser(CreateUserRequest(user=User(**fresh())))
        assert stub.GetUser(GetUserRequest(id=made.id)) == made


_PROXYLESS = """
import grpc, grpc.experimental, sys
from users.v1 import users_pb2, users_pb2_grpc
files = sys.argv[1:]
read = lambda path: open(path, "rb").read()
plain = grpc.ssl_channel_credentials(*map(read, files)) if files else grpc.experimental.insecure_channel_credentials()
with grpc.secure_channel("xds:///users.v1.UserService", grpc.xds_channel_credentials(plain)) as channel:
    stub = users_pb2_grpc.UserServiceStub(channel)
    for _ in range(30):
        stub.ListUsers(users_pb2.ListUsersRequest(), timeout=20, wait_for_ready=True)
print("served")
"""


def bootstrap(stack: Stack) -> str:
    """What a gRPC client needs to know of a control plane; with TLS, also where its certificates are (gRFC A29)."""
    creds: dict[str, Any] = {"type": "insecure"}
    told: dict[str, Any] = {"node": {"id": "proxyless-test"}}
    if stack.tls:
        names = {"ca": "ca_certificate_file", "cert": "certificate_file", "key": "private_key_file"}
        files = {name: stack.tls[part] for part, name in names.items()}
        creds = {"type": "tls", "config": files}
        told["certificate_providers"] = {"ours": {"plugin_name": "file_watcher", "config": files}}
        told["node"]["metadata"] = {"secrets": "ours"}
    server = {"server_uri": stack.control_plane, "channel_creds": [creds], "server_features": ["xds_v3"]}
    return json.dumps(told | {"xds_servers": [server]})


def test_proxyless_client_is_served_by_the_control_plane_alone(each: Stack) -> None:
    files = [each.tls["ca"], each.tls["key"], each.tls["cert"]] if each.tls else []
    env = os.environ | {"GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap(each)}

    done = subprocess.run(
        [sys.executable, "-c", _PROXYLESS, *files], env=env, capture_output=True, text=True, timeout=60
    )

    assert done.stdout == "served\n", done.stderr[-2000:]


def test_list_through_each_instance_is_the_same(each: Stack) -> None:
    answers = set()
    for instance in each.instances:
        grpcurl = Grpcurl(instance.address, each.tls)
        answers.add(grpcurl.ask(f"{SERVICE}/ListUsers"))

    assert len(answers) == 1


def test_watch_tells_a_change_made_through_another_instance(each: Stack) -> None:
    async def story() -> None:
        async with mesh.connect(SERVICE, settings=Settings.from_env(each.environment)) as channel:
            stub = UserServiceStub(channel)
            watch = stub.WatchUsers(WatchUsersRequest())
            await watch.read()
            wanted = fresh()
            await stub.CreateUser(CreateUserRequest(user=User(**wanted)))
            async with asyncio.timeout(10):
                while (await watch.read()).user.id != wanted["id"]:
                    pass
            watch.cancel()

    asyncio.run(story())
