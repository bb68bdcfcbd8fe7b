"""No user's name or email in anything that the stack writes down: logs, metrics, spans. What is looked through is the
whole session's: every test of this folder names its users alike.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
import uuid
from collections.abc import Awaitable
from pathlib import Path

import grpc
import pytest

import mesh
from mesh.settings import Settings
from support.collector import Collector
from support.entrances import SERVICE, ask
from support.privacy import forbidden_in
from support.stack import Stack
from users.v1.users_pb2 import CreateUserRequest, UpdateUserRequest, User
from users.v1.users_pb2_grpc import UserServiceStub

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]

# The names and the addresses of the users in this folder's tests.
PERSONAL = ("private.example", "load.example", "Zaphod", "Trillian", "Amélie", "DROP TABLE users")


async def good_and_bad_calls(stack: Stack) -> None:
    """Calls by both roads, refused in every way that has a user's data near it."""
    mark = uuid.uuid4().hex
    user = User(id=f"p{mark}", name="Zaphod", email=f"{mark}@private.example")
    ours = mesh.connect(SERVICE, settings=Settings.from_env(stack.environment))
    async with ours, grpc.aio.insecure_channel(stack.edge) as edge:
        for channel in (ours, edge):
            stub = UserServiceStub(channel)
            for request in (
                CreateUserRequest(user=user),
                CreateUserRequest(user=User(name="Zaphod", email=user.email)),
                CreateUserRequest(user=User(name="Zaphod\0", email=user.email)),
                CreateUserRequest(user=User(name="Zaphod", email=f"@@{user.email}")),
                CreateUserRequest(user=user, request_id="Zaphod"),
            ):
                await _tried(stub.CreateUser(request, timeout=10))
            await _tried(stub.UpdateUser(UpdateUserRequest(user=User(id=user.id, name="Zaphod II", etag="stale"))))
            await _tried(stub.UpdateUser(UpdateUserRequest(user=User(id=user.id, name="Zaphod III"))))


async def _tried(call: Awaitable[object]) -> None:
    told = ""
    try:
        await call
    except grpc.aio.AioRpcError as e:
        told = e.details() or ""
    assert not forbidden_in(told, PERSONAL)


def pages(stack: Stack) -> str:
    """Every page of metrics in the stack."""
    found = []
    known = [f"{each.metrics}/metrics" for each in stack.processes if each.metrics]
    assert len(known) == 4  # three instances and the control plane
    for address in [f"{stack.admin}/stats/prometheus", *known]:
        with urllib.request.urlopen(f"http://{address}", timeout=10) as page:
            found.append(page.read().decode())
    return "\n".join(found)


def written(folder: Path) -> str:
    """All logs."""
    return "\n".join(file.read_text(errors="replace") for file in folder.rglob("*.log"))


@pytest.mark.parametrize("kind", ["stack", "postgres_stack"])
def test_no_log_and_no_metric_names_a_user(kind: str, request: pytest.FixtureRequest) -> None:
    stack: Stack = request.getfixturevalue(kind)
    asyncio.run(good_and_bad_calls(stack))
    mark = uuid.uuid4().hex
    ask(stack.edge, "POST", "/v1/users", {"name": "Zaphod", "email": f"{mark}@private.example", "x": "Zaphod"})
    ask(stack.edge, "POST", "/v1/users", b'{"name":"Zaphod","email":"z@private.example"')

    logs, metrics = written(stack.data), pages(stack)

    assert "users.v1.UserService" in logs
    assert "users.v1.UserService" in metrics
    assert not forbidden_in(logs, PERSONAL)
    assert not forbidden_in(metrics, PERSONAL)


def test_no_span_names_a_user(postgres_stack: Stack, collector: Collector) -> None:
    asyncio.run(good_and_bad_calls(postgres_stack))
    begin = time.monotonic()
    while not any(span["name"] == f"{SERVICE}/UpdateUser" for span in collector.spans):
        assert time.monotonic() - begin < 10
        time.sleep(0.05)

    assert not forbidden_in(repr(collector.spans), PERSONAL)
    assert not forbidden_in(repr(collector.resources), PERSONAL)
