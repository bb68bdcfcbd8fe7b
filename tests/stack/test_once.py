"""One request_id, many times at once, at different instances: one user, equal answers."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest

from support.stack import Stack
from users.v1.users_pb2 import CreateUserRequest, ListUsersRequest, User
from users.v1.users_pb2_grpc import UserServiceStub

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]

TIMES = 50


@pytest.fixture(params=["stack", "postgres_stack"], ids=["sqlite", "postgres"])
def any_stack(request: pytest.FixtureRequest) -> Stack:
    """A stack on each of the two databases."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Stack)
    return found


@pytest.mark.parametrize("round", range(5))
def test_create_sent_fifty_times_at_once_makes_one_user_and_fifty_equal_answers(round: int, any_stack: Stack) -> None:
    mark = uuid.uuid4().hex
    request = CreateUserRequest(
        user=User(name="Arthur", email=f"{mark}@private.example"), request_id=str(uuid.UUID(mark))
    )

    answers = asyncio.run(_at_once(any_stack, request))

    assert len(answers) == TIMES
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert asyncio.run(_count(any_stack, request.user.email)) == 1


async def _at_once(stack: Stack, request: CreateUserRequest) -> list[User]:
    channels = [grpc.aio.insecure_channel(instance.address) for instance in stack.instances]
    assert len(channels) == 3
    try:
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        stubs = [UserServiceStub(channel) for channel in channels]
        return list(await asyncio.gather(*(stubs[n % 3].CreateUser(request, timeout=15) for n in range(TIMES))))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _count(stack: Stack, email: str) -> int:
    async with grpc.aio.insecure_channel(stack.edge) as channel:
        stub, token, found = UserServiceStub(channel), "", 0
        while True:
            page = await stub.ListUsers(ListUsersRequest(page_size=1000, page_token=token), timeout=15)
            found += sum(user.email == email for user in page.users)
            token = page.next_page_token
            if not token:
                return found
