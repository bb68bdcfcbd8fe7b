"""Chains of real servers: what a call hands on from hop to hop, by tasks and by threads."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

import mesh
from mesh.policy import BudgetPolicy
from mesh.resilience.hops import ATTEMPTS_LEFT, CURRENT, PRIORITY, Hop
from mesh.resilience.retry import PREVIOUS_ATTEMPTS
from mesh.server import refusal_of
from mesh.wallclock import CLOCK
from support.chain import Chain, Still, chain
from support.echo import EchoRequest, EchoServicer
from support.fleet import IDEMPOTENT, UU, fleet, until
from support.serving import echo, error_of

DOWN = EchoRequest(fail="UNAVAILABLE")


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as e:
        return e.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("how", ["", "thread"])
def test_the_leaf_sees_the_callers_deadline_and_each_hop_keeps_a_little_of_it(how: str) -> None:
    async def story() -> None:
        async with chain(4) as road:
            for relay in road.relays:
                relay.how = how
            # Below a second gRPC writes a timeout down to the millisecond; longer ones it rounds up by a hundredth.
            left = (await road.stub.Unary(EchoRequest(), timeout=0.95)).remaining
            assert 0.2 < left <= 0.95 - 4 * 0.019

    asyncio.run(story())


def test_a_hop_that_took_long_leaves_less_and_too_long_a_sleep_below_ends_with_the_caller() -> None:
    async def story() -> None:
        async with chain(3) as road:
            began = time.monotonic()
            assert await code_of(road.stub.Unary(EchoRequest(sleep=30), timeout=0.3)) is (
                grpc.StatusCode.DEADLINE_EXCEEDED
            )
            assert time.monotonic() - began < 2.0
            await until(lambda: road.leaf.cancelled == 1)
            await until(lambda: all(server.unfinished == 0 for server in road.servers))

    asyncio.run(story())


class Late(EchoServicer):
    """Asks when the time of the call is over, as though something before had taken it."""

    def __init__(self, stub: Any) -> None:
        super().__init__("late")
        self._stub = stub

    async def Unary(self, request: Any, context: Any) -> Any:
        hop = CURRENT.get()
        assert hop is not None
        hop.deadline = 0.0
        return await self._stub.Unary(request)


def test_work_that_has_no_time_left_is_not_begun() -> None:
    async def story() -> None:
        async with chain(1) as road, echo(servicer=Late(road.stub)) as (stub, _):
            refusal = refusal_of(await error_of(stub.Unary(EchoRequest())))
            assert refusal is not None
            assert refusal.reason == "TOO_SLOW"
            assert road.leaf.calls == 0

    asyncio.run(story())


def test_who_hangs_up_ends_the_work_of_the_whole_road() -> None:
    async def story() -> None:
        async with chain(4) as road:
            call = road.stub.Unary(EchoRequest(sleep=30), timeout=60)
            await until(lambda: road.leaf.calls == 1)
            call.cancel()
            await until(lambda: road.leaf.cancelled == 1)
            await until(lambda: all(server.unfinished == 0 for server in road.servers))
            assert [relay.cancelled for relay in road.relays] == [1, 1, 1]

    asyncio.run(story())


def test_who_hangs_up_ends_blocking_calls_made_in_threads_too() -> None:
    async def story() -> None:
        async with chain(2) as road:
            (relay,) = road.relays
            relay.how = "thread"
            call = road.stub.Unary(EchoRequest(sleep=30), timeout=60)
            await until(lambda: road.leaf.calls == 1)
            call.cancel()
            await until(lambda: road.leaf.cancelled == 1)
            await until(lambda: len(relay.failures) == 1)
            assert relay.failures[0].code() is grpc.StatusCode.CANCELLED

    asyncio.run(story())


def test_a_task_that_outlives_the_answer_still_has_its_deadline_and_a_detached_one_has_its_own() -> None:
    async def story() -> None:
        async with chain(2) as road:
            (relay,) = road.relays
            relay.how = "task"
            await road.stub.Unary(EchoRequest(), timeout=3.0)
            relay.how = "detached"
            await road.stub.Unary(EchoRequest(), timeout=3.0)
            bounded, own = await asyncio.gather(*relay.later)
            assert bounded.remaining < 3.0 < own.remaining

    asyncio.run(story())


def test_a_call_that_goes_well_carries_nothing() -> None:
    async def story() -> None:
        async with chain(3) as road:
            await road.stub.Unary(EchoRequest())
            for relay in road.relays:
                assert not {ATTEMPTS_LEFT, PREVIOUS_ATTEMPTS} & set(relay.metadata[0])

    asyncio.run(story())


class Once(EchoServicer):
    """Fails the first time in a way that leaves no mark, as a server does that dies."""

    async def Unary(self, request: Any, context: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return await super().Unary(request, context)


def test_a_fault_that_a_retry_mends_is_mended_next_to_it() -> None:
    async def story() -> None:
        async with chain(4, leaf=Once("leaf")) as road:
            assert (await road.stub.Unary(EchoRequest(text="a"))).text == "a"
            assert [relay.calls for relay in road.relays] == [1, 1, 1]

    asyncio.run(story())


async def storm(road: Chain, calls: int, at_once: int = 20) -> int:
    """Make so many calls to a leaf that is down, and return how many of them it met."""
    before = road.leaf.calls
    for _ in range(calls // at_once):
        codes = await asyncio.gather(*(code_of(road.stub.Unary(DOWN, timeout=30)) for _ in range(at_once)))
        assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
    return int(road.leaf.calls) - before


def test_a_dead_leaf_four_hops_down_meets_three_calls_for_the_first_and_not_81() -> None:
    async def story() -> None:
        async with chain(4, attempts=3) as road:
            assert await storm(road, 1, at_once=1) == 3
            # The hop next to it tried again; all others passed the mark on.
            assert [relay.calls for relay in road.relays] == [1, 1, 1]

    asyncio.run(story())


def test_a_dead_leaf_four_hops_down_meets_at_most_a_fifth_more_than_the_calls() -> None:
    async def story() -> None:
        async with chain(4, attempts=3, clock=Still()) as road:
            floor = BudgetPolicy().per_second * BudgetPolicy().window
            # What a budget begins with, whatever the calls, is used up first.
            await storm(road, int(floor))
            calls = 300
            assert calls <= await storm(road, calls) <= 1.2 * calls
            assert all(relay.calls == floor + calls for relay in road.relays)

    asyncio.run(story())


def test_attempts_left_are_told_to_the_hop_behind_and_spent_there() -> None:
    async def story() -> None:
        async with chain(2, attempts=3) as road:
            (relay,) = road.relays
            call = road.stub.Unary(DOWN, metadata=((ATTEMPTS_LEFT, "1"),))
            assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
            assert (relay.calls, road.leaf.calls) == (1, 2)
            call = road.stub.Unary(DOWN, metadata=((ATTEMPTS_LEFT, "0"),))
            assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
            assert (relay.calls, road.leaf.calls) == (2, 3)

    asyncio.run(story())


async def told(message: bytes, context: Any) -> bytes:
    """Answer with the time left, or refuse."""
    if b"fail" in message:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no")
    return str(context.time_remaining()).encode()


def test_work_that_outlived_its_call_is_told_how_it_may() -> None:
    async def story() -> None:
        async with fleet(1) as (host,), mesh.connect("test.Fleet", endpoints=[host.address]) as channel:
            CURRENT.set(hop_of(-1.0, "1"))
            error = await error_of(channel.unary_unary(UU)(b"x"))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "mesh.detached()" in (error.details() or "")
            assert host.calls == 0
            with mesh.detached():
                assert await channel.unary_unary(UU)(b"x") == b"x"

    asyncio.run(story())


def hop_of(seconds: float, left: str) -> Hop:
    return Hop(CLOCK.monotonic() + seconds, lambda: ((ATTEMPTS_LEFT, left),))


def test_a_plain_channel_with_a_retry_interceptor_hands_on_the_same() -> None:
    async def story() -> None:
        async with fleet(1) as (host,):
            host.answer = told
            retry = mesh.RetryInterceptor(IDEMPOTENT)
            async with grpc.aio.insecure_channel(host.address, interceptors=[retry]) as channel:
                call, hop = channel.unary_unary(UU), hop_of(3.0, "1")
                CURRENT.set(hop)
                assert float(await call(b"x")) <= 3.01
                assert [m.get(ATTEMPTS_LEFT) for m in host.metadata] == ["1"]
                assert await code_of(call(b"fail")) is grpc.StatusCode.UNAVAILABLE
                assert [m.get(ATTEMPTS_LEFT) for m in host.metadata] == ["1", "1", "0"]
                assert hop.is_spent

    asyncio.run(story())


def test_a_plain_blocking_channel_with_a_retry_interceptor_hands_on_the_same() -> None:
    def calls(address: str, hop: Hop) -> float:
        CURRENT.set(hop)
        retry = mesh.blocking.RetryInterceptor(IDEMPOTENT)
        with grpc.insecure_channel(address) as plain:
            call = grpc.intercept_channel(plain, retry).unary_unary(UU)
            left = float(call(b"x"))
            with pytest.raises(grpc.RpcError):
                call(b"fail")
        return left

    async def story() -> None:
        async with fleet(1) as (host,):
            host.answer = told
            hop = hop_of(3.0, "1")
            assert await asyncio.to_thread(calls, host.address, hop) <= 3.01
            assert [m.get(ATTEMPTS_LEFT) for m in host.metadata] == ["1", "1", "0"]
            assert hop.is_spent

    asyncio.run(story())


def test_a_priority_goes_down_the_road_and_a_handlers_own_wins() -> None:
    async def story() -> None:
        async with fleet(1) as (host,), mesh.connect("test.Fleet", endpoints=[host.address]) as channel:
            CURRENT.set(Hop(CLOCK.monotonic() + 5, lambda: ((PRIORITY, "critical"),)))
            await channel.unary_unary(UU)(b"x")
            await channel.unary_unary(UU)(b"x", metadata=((PRIORITY, "sheddable"),))
            # Of several the last one counts.
            assert [m[PRIORITY] for m in host.metadata] == ["critical", "sheddable"]

    asyncio.run(story())
