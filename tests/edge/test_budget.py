"""What Envoy may send again: all that a sick instance fails, and next to nothing where all of them are sick."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.resilience.hops import STOP_RETRYING
from mesh.resilience.retry import PUSHBACK
from support.front import SERVICE, Front, Tiny, TinyUsers
from support.http1 import Client
from users.v1 import users_pb2, users_pb2_grpc

CALLS = 400
EJECTED = f"cluster.{SERVICE}.outlier_detection.ejections_active"
REFUSED = f"cluster.{SERVICE}.upstream_cx_connect_fail$"
RETRIES = f"cluster.{SERVICE}.upstream_rq_retry$"


class Sick(TinyUsers):
    sick = False

    async def ListUsers(self, request: Any, context: Any) -> Any:
        if self.sick:
            self.calls += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "sick")
        return await super().ListUsers(request, context)


def sicken(front: Front, *sick: bool) -> None:
    for tiny, is_sick in zip(front.tiny, sick, strict=True):
        assert isinstance(tiny.servicer, Sick)
        tiny.servicer.sick = is_sick


async def failures(stub: users_pb2_grpc.UserServiceStub, calls: int) -> int:
    """Make so many calls, two at a time, and count those that failed."""

    async def some(number: int) -> int:
        failed = 0
        for _ in range(number):
            try:
                await stub.ListUsers(users_pb2.ListUsersRequest(), timeout=5)
            except grpc.aio.AioRpcError as e:
                failed += e.code() is grpc.StatusCode.UNAVAILABLE
        return failed

    return sum(await asyncio.gather(some(calls // 2), some(calls // 2)))


def test_outage_has_at_most_a_fifth_more_calls_and_one_sick_instance_fails_none(tmp_path: Path) -> None:
    async def story() -> None:
        front = Front(tmp_path, instances=3)
        front.tiny = [Tiny(Sick()) for _ in range(3)]
        front.views.set_policy(SERVICE, b'{"breaker": {"openFor": "1s"}}')
        async with front, grpc.aio.insecure_channel(front.address) as channel:
            stub = users_pb2_grpc.UserServiceStub(channel)
            sicken(front, True, False, False)
            assert await failures(stub, CALLS) == 0
            assert front.envoy.stats(RETRIES).popitem()[1] >= 5

            sicken(front, True, True, True)
            assert await failures(stub, CALLS // 2) == CALLS // 2  # what was saved is spent
            before = sum(tiny.servicer.calls for tiny in front.tiny)
            assert await failures(stub, CALLS) == CALLS
            assert CALLS <= sum(tiny.servicer.calls for tiny in front.tiny) - before <= 1.2 * CALLS

            sicken(front, False, False, False)
            async with asyncio.timeout(20):  # at most half are left alone, whoever it is
                while front.envoy.stats(EJECTED).popitem()[1]:
                    assert await failures(stub, CALLS) == 0
            sicken(front, False, True, False)
            assert await failures(stub, CALLS) == 0

    asyncio.run(story())


def test_call_without_a_budget_is_sent_again_if_nobody_has_seen_it(tmp_path: Path) -> None:
    async def story() -> None:
        front = Front(tmp_path, instances=3)
        front.tiny = [Tiny(Sick()) for _ in range(3)]
        front.views.set_policy(SERVICE, b'{"breaker": {"mode": "MODE_METRICS_ONLY"}}')
        async with front, grpc.aio.insecure_channel(front.address) as channel:
            stub = users_pb2_grpc.UserServiceStub(channel)
            sicken(front, True, True, True)
            assert await failures(stub, CALLS // 2) == CALLS // 2
            sicken(front, False, False, False)
            await front.tiny[0]._server.stop(None)
            assert await failures(stub, 12) == 0
            assert front.envoy.stats(REFUSED).popitem()[1]

    asyncio.run(story())


class Final(TinyUsers):
    """Refuses for good: ListUsers at once, GetUser after 0.4 s the first time, and a hedge of that never."""

    asked = 0

    async def ListUsers(self, request: Any, context: Any) -> Any:
        self._note(context)
        await self._refuse(context)

    async def GetUser(self, request: Any, context: Any) -> Any:
        Final.asked += 1
        await asyncio.sleep(0.4 if Final.asked == 1 else 60.0)
        await self._refuse(context)

    async def _refuse(self, context: Any) -> None:
        trailing = ((PUSHBACK, STOP_RETRYING), ("x-envoy-ratelimited", "true"))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "nowhere", trailing)


def test_answer_for_good_is_neither_repeated_nor_kept_back_while_a_hedge_is_under_way(tmp_path: Path) -> None:
    async def story() -> None:
        front = Front(tmp_path, instances=3)
        front.tiny = [Tiny(Final()) for _ in range(3)]
        async with front, grpc.aio.insecure_channel(front.address) as channel:
            stub = users_pb2_grpc.UserServiceStub(channel)
            assert await failures(stub, 2) == 2
            assert sum(tiny.servicer.calls for tiny in front.tiny) == 2

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetUser(users_pb2.GetUserRequest(id="any"), timeout=5)
            assert (refused.value.code(), Final.asked) == (grpc.StatusCode.UNAVAILABLE, 2)
            told = {*dict(refused.value.initial_metadata()), *dict(refused.value.trailing_metadata())}
            assert not [name for name in told if name.startswith("x-envoy")]

    asyncio.run(story())


def test_callers_are_not_told_how_often_the_mesh_tried(tmp_path: Path) -> None:
    async def story() -> None:
        async with Front(tmp_path) as front, grpc.aio.insecure_channel(front.address) as channel:
            call = users_pb2_grpc.UserServiceStub(channel).ListUsers(users_pb2.ListUsersRequest(), timeout=5)
            await call
            json = Client(front.address)
            names = {*dict(await call.initial_metadata()), *(await json.ask("GET", "/v1/users")).headers}
            await json.close()
        assert not [name for name in names if name.startswith("x-envoy")]

    asyncio.run(story())
