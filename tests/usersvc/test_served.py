"""The service on mesh servers, spoken to by stock gRPC: what reaches a caller over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from contract.users import REQUEST, ada
from mesh.memory import MemoryStore
from mesh.server import Server
from mesh.settings import Settings
from users.v1.users_pb2 import (
    CreateUserRequest,
    DeleteUserRequest,
    GetUserRequest,
    ListUsersRequest,
    UpdateUserRequest,
    User,
    WatchUsersRequest,
    WatchUsersResponse,
)
from users.v1.users_pb2_grpc import UserServiceStub
from usersvc.database import open_store
from usersvc.servicer import UserService

if TYPE_CHECKING:  # only the typed stubs know it
    from users.v1.users_pb2_grpc import UserServiceAsyncStub


@asynccontextmanager
async def _served(url: str, count: int) -> AsyncIterator[list[UserServiceAsyncStub]]:
    """Serve one database by several instances; give a stub for each."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(MemoryStore())
        stubs = []
        for n in range(count):
            store = await open_store(url)
            stack.push_async_callback(store.close)
            settings = Settings(instance_id=f"users-{n}", drain=1.0)
            server = await stack.enter_async_context(Server(UserService(store), settings=settings, store=registry))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(server.endpoint)))
            stubs.append(UserServiceStub(channel))
        yield stubs


def _story(url: str, count: int, tell: Callable[..., Awaitable[None]]) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), _served(url, count) as stubs:
            await tell(*stubs)

    asyncio.run(story())


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'users.db'}"
    made: str = request.getfixturevalue("postgres").make()
    return made


async def _info(call: Awaitable[object]) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "users.v1"
    return caught.value.code(), info


def test_refusals_reach_the_caller_as_google_rpc_status(url: str) -> None:
    async def tell(stub: UserServiceAsyncStub) -> None:
        await stub.CreateUser(CreateUserRequest(user=ada()))
        code = grpc.StatusCode
        cases: list[tuple[Awaitable[object], grpc.StatusCode, str]] = [
            (stub.CreateUser(CreateUserRequest(user=ada())), code.ALREADY_EXISTS, "USER_ALREADY_EXISTS"),
            (stub.CreateUser(CreateUserRequest(user=ada("b"))), code.ALREADY_EXISTS, "EMAIL_TAKEN"),
            (stub.CreateUser(CreateUserRequest(user=ada("b", "no"))), code.INVALID_ARGUMENT, "INVALID_USER"),
            (stub.GetUser(GetUserRequest(id="nobody")), code.NOT_FOUND, "USER_NOT_FOUND"),
            (stub.DeleteUser(DeleteUserRequest(id="ada", etag="old")), code.ABORTED, "STALE_ETAG"),
            (stub.ListUsers(ListUsersRequest(page_token="x")), code.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"),
        ]
        for call, expected, reason in cases:
            got, info = await _info(call)
            assert (got, info.reason) == (expected, reason)

    _story(url, 1, tell)


def test_one_create_sent_fifty_times_to_three_instances_makes_one_user(url: str) -> None:
    async def tell(*stubs: UserServiceAsyncStub) -> None:
        request = CreateUserRequest(user=User(name="Ada", email="ada@example.com"), request_id=REQUEST)
        answers = await asyncio.gather(*(stubs[n % 3].CreateUser(request, timeout=30) for n in range(50)))
        assert {answer.SerializeToString() for answer in answers} == {answers[0].SerializeToString()}
        assert list((await stubs[1].ListUsers(ListUsersRequest())).users) == [answers[0]]
        other = CreateUserRequest(user=User(name="Eve", email="eve@example.com"), request_id=REQUEST)
        code, info = await _info(stubs[2].CreateUser(other))
        assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")

    _story(url, 3, tell)


def test_a_watch_tells_other_instances_changes_and_resumes_at_another(url: str) -> None:
    async def tell(one: UserServiceAsyncStub, other: UserServiceAsyncStub) -> None:
        watch = one.WatchUsers(WatchUsersRequest(), timeout=30)
        await watch.read()
        made = await other.CreateUser(CreateUserRequest(user=ada()))
        told = await _next(watch)
        assert told.user == made
        watch.cancel()
        await other.UpdateUser(UpdateUserRequest(user=User(id="ada", name="New")))
        await one.DeleteUser(DeleteUserRequest(id="ada"))
        resumed = other.WatchUsers(WatchUsersRequest(resume_token=told.resume_token), timeout=30)
        kinds = [(await _next(resumed)).change for _ in range(2)]
        assert kinds == [WatchUsersResponse.CHANGE_UPDATED, WatchUsersResponse.CHANGE_DELETED]
        resumed.cancel()

    _story(url, 2, tell)


async def _next(watch: grpc.aio.UnaryStreamCall[WatchUsersRequest, WatchUsersResponse]) -> WatchUsersResponse:
    """Read on to the next change."""
    while True:
        told = await watch.read()
        if isinstance(told, WatchUsersResponse) and told.change:
            return told


def test_a_page_token_of_one_instance_is_good_at_another(url: str) -> None:
    async def tell(one: UserServiceAsyncStub, other: UserServiceAsyncStub) -> None:
        for n in range(3):
            await one.CreateUser(CreateUserRequest(user=ada(f"u{n}", f"{n}@example.com")))
        first = await one.ListUsers(ListUsersRequest(page_size=2))
        rest = await other.ListUsers(ListUsersRequest(page_size=2, page_token=first.next_page_token))
        assert [user.id for user in (*first.users, *rest.users)] == ["u0", "u1", "u2"]

    _story(url, 2, tell)
