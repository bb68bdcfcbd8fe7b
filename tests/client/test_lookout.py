"""An instance from which nothing comes is passed over while others answer, and taken back when it does."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

import mesh
from mesh.policy import HedgingPolicy, MethodPolicy
from support.fleet import IDEMPOTENT, SERVICE, US, UU, Host, fleet, until


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


def hang(host: Host) -> asyncio.Event:
    """Have a host's calls wait until what is returned is set."""
    go_on = asyncio.Event()

    async def answer(message: bytes, context: Any) -> bytes:
        await go_on.wait()
        return message

    host.answer = answer
    return go_on


async def load(unary: Any, rate: float, seconds: float, **options: Any) -> list[Any]:
    """Start calls at a steady rate."""
    calls = []
    for _ in range(int(rate * seconds)):
        calls.append(unary(b"x", **options))
        await asyncio.sleep(1 / rate)
    return calls


def test_one_that_hangs_gets_few_calls_and_is_taken_back_with_its_first_answer() -> None:
    async def story() -> None:
        async with fleet(3) as hosts:
            addresses = [host.address for host in hosts]
            async with mesh.connect(SERVICE, endpoints=addresses, policies=IDEMPOTENT) as channel:
                roster = channel._pool.roster
                await until(lambda: len(roster.pickable) == 3)
                unary = channel.unary_unary(UU)
                await load(unary, 100, 0.3)
                go_on = hang(hosts[0])
                before = hosts[0].calls
                calls = await load(unary, 100, 1.5, timeout=10)
                assert [slot.name for slot in roster.pickable] == [host.address for host in hosts[1:]]
                assert len(roster.callable) == 3
                assert hosts[0].calls - before <= 25
                go_on.set()
                await until(lambda: len(roster.pickable) == 3 or not unary(b"x"))
                assert {await call.code() for call in calls} == {grpc.StatusCode.OK}
                assert "Stalls(0 of 3 hang" in repr(channel._pool.lookout)

    run(story())


def test_with_hedges_that_leave_nothing_under_way_it_is_found_too() -> None:
    async def story() -> None:
        hedged = {UU: MethodPolicy(idempotent=True, hedging=HedgingPolicy(3, 0.05, follow_p95=False))}
        async with fleet(3) as hosts:
            addresses = [host.address for host in hosts]
            async with mesh.connect(SERVICE, endpoints=addresses, policies=hedged) as channel:
                roster = channel._pool.roster
                await until(lambda: len(roster.pickable) == 3)
                unary = channel.unary_unary(UU)
                # What hedges every call that goes there until it is found: the savings of two seconds at that rate.
                for _ in range(200):  # one by one: of many at once some would be hedged
                    await unary(b"x")
                hang(hosts[0])
                calls: list[Any] = []

                def is_found() -> bool:
                    # Its breaker may be quicker: attempts that lost to a later one are slow ones.
                    return hosts[0].address not in {s.name for s in roster.pickable if s.breaker.is_closed}

                # Asked while calls are made: once nothing has been under way there for a second, it is tried again.
                async with asyncio.timeout(10):
                    while not is_found():
                        calls += await load(unary, 100, 0.01, timeout=10)
                assert {await call.code() for call in calls} == {grpc.StatusCode.OK}

    run(story())


def test_where_only_one_is_left_it_is_called_though_it_hangs() -> None:
    async def story() -> None:
        async with fleet(2) as hosts:
            addresses = [host.address for host in hosts]
            async with mesh.connect(SERVICE, endpoints=addresses, policies=IDEMPOTENT) as channel:
                roster = channel._pool.roster
                await until(lambda: len(roster.pickable) == 2)
                unary = channel.unary_unary(UU)
                await load(unary, 100, 0.3)
                go_on = hang(hosts[0])
                calls = await load(unary, 100, 1.0, timeout=10)
                assert len(roster.pickable) == 1
                await hosts[1].stop()
                await until(lambda: [slot.name for slot in roster.pickable] == [hosts[0].address])
                go_on.set()
                assert await unary(b"x", timeout=5) == b"x"
                assert {await call.code() for call in calls} == {grpc.StatusCode.OK}

    run(story())


def test_streams_are_counted_apart_because_they_may_be_silent() -> None:
    async def story() -> None:
        async with fleet(2) as hosts:
            addresses = [host.address for host in hosts]
            async with mesh.connect(SERVICE, endpoints=addresses, policies=IDEMPOTENT) as channel:
                slots = channel._pool.roster.slots
                await until(lambda: len(channel._pool.roster.pickable) == 2)
                waits = [hang(host) for host in hosts]
                streams = [channel.unary_stream(US)(b"x", timeout=10) for _ in range(4)]
                assert [slot.connection.streams for slot in slots] == [2, 2]
                for go_on in waits:
                    go_on.set()
                for stream in streams[1:]:
                    assert len([m async for m in stream]) == 3
                streams[0].cancel()
                assert [slot.connection.streams for slot in slots] == [0, 0]
                assert [slot.connection.in_flight for slot in slots] == [0, 0]

    run(story())


def test_calls_that_succeed_set_no_timer() -> None:
    # A loop that waits for a time does more in each turn: a stream would pay for it with every message.
    async def story() -> None:
        loop = asyncio.get_running_loop()
        timers: list[Any] = []

        def call_at(when: float, callback: Any, *args: Any, context: Any = None) -> Any:
            timers.append(callback)
            return type(loop).call_at(loop, when, callback, *args, context=context)

        async with fleet(2) as hosts:
            addresses = [host.address for host in hosts]
            async with mesh.connect(SERVICE, endpoints=addresses, policies=IDEMPOTENT) as channel:
                await until(lambda: len(channel._pool.roster.pickable) == 2)
                looks = channel._pool.due
                loop.call_at = call_at  # type: ignore[method-assign]  # there is no other way to hear of timers
                for _ in range(20):
                    assert await channel.unary_unary(UU)(b"x") == b"x"
                    assert len([m async for m in channel.unary_stream(US)(b"x")]) == 3
                del loop.call_at
                assert timers == []
                assert channel._pool.due > looks

    run(story())
