"""Hedged calls over real connections: who answers, who is cancelled, and that nothing is left over."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio

import mesh
from mesh.client import pacer
from mesh.client.call import UnaryUnaryCall
from mesh.client.hedging import HedgedCall
from mesh.policy import Balancer, BalancerPolicy, BreakerPolicy, HedgingPolicy, MethodPolicy
from mesh.resilience.hops import ATTEMPTS_LEFT, CURRENT, Hop
from support.fleet import QUICK, SERVICE, US, UU, Host, echo, fleet, refuse, slow, until

HEDGED = HedgingPolicy(max_attempts=3, delay=0.05, follow_p95=False)


def policies(hedging: HedgingPolicy = HEDGED, **more: Any) -> dict[str, MethodPolicy]:
    return {path: MethodPolicy(**{"idempotent": True, "retry": QUICK} | more, hedging=hedging) for path in (UU, US)}


@asynccontextmanager
async def road(size: int, hedging: HedgingPolicy = HEDGED, **more: Any) -> AsyncIterator[tuple[list[Host], Any]]:
    async with fleet(size) as hosts:
        addresses = [host.address for host in hosts]
        async with mesh.connect(SERVICE, endpoints=addresses, policies=policies(hedging, **more)) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == size)
            yield hosts, channel


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


def hang_first(hosts: list[Host], times: int = 1) -> list[asyncio.Event]:
    """Have the first so many calls that come hang, whichever host they come to; return what tells of their end."""
    ended: list[asyncio.Event] = []

    async def answer(message: bytes, context: Any) -> bytes:
        if len(ended) >= times:
            return message
        event = asyncio.Event()
        ended.append(event)
        context.add_done_callback(lambda _: event.set())
        await asyncio.sleep(60)
        return message

    for host in hosts:
        host.answer = answer
    return ended


def idle(channel: Any) -> bool:
    slots = channel._pool.roster.slots
    return all(s.connection.in_flight == 0 for s in slots)


def test_a_call_that_takes_long_is_answered_by_another_endpoint_and_the_first_is_cancelled() -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            ended = hang_first(hosts)
            begin = time.monotonic()
            call = channel.unary_unary(UU)(b"x", timeout=5)
            assert isinstance(call, HedgedCall)
            assert await call == b"x"
            assert 0.05 <= time.monotonic() - begin < 1
            assert await call == b"x"
            assert await call.code() is grpc.StatusCode.OK
            (lost,) = call.attempts
            assert lost.code == "CANCELLED"
            assert "another attempt was answered first" in lost.detail
            await asyncio.wait_for(ended[0].wait(), 5)
            assert idle(channel)
            assert sorted(host.calls for host in hosts) == [0, 1, 1]
            told = [m.get("grpc-previous-rpc-attempts") for host in hosts for m in host.metadata]
            assert sorted(told, key=str) == ["1", None]

    run(story())


def test_each_hedge_goes_to_another_endpoint_and_no_further_than_there_are() -> None:
    async def story() -> None:
        async with road(2, HedgingPolicy(max_attempts=5, delay=0.02, follow_p95=False)) as (hosts, channel):
            hang_first(hosts, 9)
            with pytest.raises(mesh.CallError) as raised:
                await channel.unary_unary(UU)(b"x", timeout=0.5)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert [host.calls for host in hosts] == [1, 1]
            assert idle(channel)

    run(story())


def test_a_hedge_that_has_nowhere_to_go_is_asked_for_again() -> None:
    async def story() -> None:
        async with road(2, HedgingPolicy(max_attempts=2, delay=0.01, follow_p95=False)) as (hosts, channel):
            await hosts[1].stop()
            await until(lambda: len(channel._pool.roster.pickable) == 1)
            hang_first(hosts)
            call = channel.unary_unary(UU)(b"x", timeout=10)
            end = time.monotonic() + 0.2
            await until(lambda: time.monotonic() > end and hosts[0].calls)
            await hosts[1].start()
            assert await call == b"x"
            assert [host.calls for host in hosts] == [1, 1]
            assert idle(channel)

    run(story())


def test_without_a_delay_all_attempts_are_made_at_once() -> None:
    async def story() -> None:
        async with road(3, HedgingPolicy(max_attempts=3, delay=0.0, follow_p95=False)) as (hosts, channel):
            hang_first(hosts, 2)
            begin = time.monotonic()
            assert await channel.unary_unary(UU)(b"x", timeout=5) == b"x"
            assert time.monotonic() - begin < 1
            assert [host.calls for host in hosts] == [1, 1, 1]

    run(story())


def test_a_non_fatal_failure_is_made_good_at_once_and_a_fatal_one_is_the_answer() -> None:
    async def story() -> None:
        async with road(3, HedgingPolicy(max_attempts=3, delay=20.0, follow_p95=False)) as (hosts, channel):
            unary = channel.unary_unary(UU)
            for _ in range(100):  # what pays for up to six attempts more
                await unary(b"x")
            hosts[0].answer = hosts[1].answer = refuse("UNAVAILABLE")
            for _ in range(3):
                call = unary(b"x", timeout=5)
                assert await call == b"x"
                assert {a.code for a in call.attempts} <= {"UNAVAILABLE"}
                assert len({a.endpoint for a in call.attempts}) == len(call.attempts)
            for host in hosts:
                host.answer = refuse("NOT_FOUND", "not here")
            with pytest.raises(mesh.CallError) as raised:
                await unary(b"x", timeout=5)
            assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.NOT_FOUND, "not here")
            assert len(raised.value.attempts) == 1
            assert idle(channel)

    run(story())


def test_a_fatal_answer_cancels_the_others() -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            ended = hang_first(hosts)
            unary = channel.unary_unary(UU)
            task = asyncio.ensure_future(unary(b"x", timeout=5))
            await until(lambda: bool(ended))
            for host in hosts:
                host.answer = refuse("ABORTED", "no")
            with pytest.raises(mesh.CallError) as raised:
                await task
            assert raised.value.code() is grpc.StatusCode.ABORTED
            await asyncio.wait_for(ended[0].wait(), 5)
            assert idle(channel)

    run(story())


def test_if_all_attempts_fail_the_last_failure_is_told() -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            for host in hosts:
                host.answer = refuse("UNAVAILABLE", "overloaded")
            with pytest.raises(mesh.CallError) as raised:
                await channel.unary_unary(UU)(b"x", timeout=5)
            assert [a.code for a in raised.value.attempts] == ["UNAVAILABLE"] * 3
            assert raised.value.details().startswith("overloaded (3 attempts: ")

    run(story())


def test_a_pushback_is_waited_for_and_one_that_forbids_more_ends_the_hedges() -> None:
    async def story() -> None:
        async with road(2, HedgingPolicy(max_attempts=2, delay=20.0, follow_p95=False)) as (hosts, channel):
            unary = channel.unary_unary(UU)
            later = refuse("UNAVAILABLE", trailing=(("grpc-retry-pushback-ms", "200"),))
            hosts[0].answer = later
            begin = time.monotonic()
            assert [await unary(b"x", timeout=5), await unary(b"x", timeout=5)] == [b"x", b"x"]
            assert 0.2 <= time.monotonic() - begin < 2
            assert hosts[0].calls <= hosts[1].calls == 2
            for host in hosts:
                host.answer = refuse("UNAVAILABLE", trailing=(("grpc-retry-pushback-ms", "-1"),))
            with pytest.raises(mesh.CallError) as raised:
                await unary(b"x", timeout=5)
            assert len(raised.value.attempts) == 1

    run(story())


@pytest.mark.parametrize(
    ("more", "path", "kind"),
    [
        ({}, UU, HedgedCall),
        ({"idempotent": False}, UU, UnaryUnaryCall),
        ({"idempotent": False, "has_request_id": True}, UU, UnaryUnaryCall),
        ({"hedging": HedgingPolicy()}, UU, UnaryUnaryCall),
    ],
)
def test_only_calls_that_may_be_sent_twice_are_hedged(more: Any, path: str, kind: type) -> None:
    async def story() -> None:
        hedging = more.pop("hedging", HEDGED)
        async with road(2, hedging, **more) as (_, channel):
            call = channel.unary_unary(path)(b"x")
            assert type(call) is kind
            assert await call == b"x"

    more = dict(more)
    run(story())


def test_a_request_with_an_id_may_be_hedged_and_without_one_not() -> None:
    class Named(bytes):
        request_id = "a"

    async def story() -> None:
        async with road(2, idempotent=False, has_request_id=True) as (_, channel):
            unary = channel.unary_unary(UU)
            assert isinstance(unary(Named(b"x")), HedgedCall)
            assert not isinstance(unary(b"x"), HedgedCall)

    run(story())


def test_a_stream_of_responses_is_not_hedged() -> None:
    async def story() -> None:
        async with road(2) as (hosts, channel):
            for host in hosts:
                host.answer = slow(0.1)
            assert [m async for m in channel.unary_stream(US)(b"x")] == [b"x0", b"x1", b"x2"]
            assert sum(host.calls for host in hosts) == 1

    run(story())


def test_first_metadata_and_response_are_of_the_same_attempt() -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            begun = 0

            async def answer(message: bytes, context: Any) -> bytes:
                nonlocal begun
                begun += 1
                mine = str(begun)
                await context.send_initial_metadata((("number", mine),))
                await asyncio.sleep(0.3 if mine == "1" else 0.01)
                return mine.encode()

            for host in hosts:
                host.answer = answer
            call = channel.unary_unary(UU)(b"x", timeout=5)
            assert dict(await call.initial_metadata())["number"] == "2"
            assert await call == b"2"

    run(story())


def test_metadata_can_be_waited_for_while_the_first_attempt_hangs() -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            hang_first(hosts)
            call = channel.unary_unary(UU)(b"x", timeout=5)
            await call.initial_metadata()
            assert await call.trailing_metadata() == aio.Metadata()
            assert await call == b"x"
            assert idle(channel)

    run(story())


def test_cancelling_ends_every_attempt() -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            ended = hang_first(hosts, 9)
            call = channel.unary_unary(UU)(b"x", timeout=5)
            waiting = asyncio.ensure_future(call.code())
            await until(lambda: len(ended) == 3)
            assert call.cancel()
            assert not call.cancel()
            assert await waiting is grpc.StatusCode.CANCELLED
            with pytest.raises(asyncio.CancelledError):
                await call
            for event in ended:
                await asyncio.wait_for(event.wait(), 5)
            assert idle(channel)

    run(story())


def test_a_caller_that_is_cancelled_ends_every_attempt() -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            ended = hang_first(hosts, 9)

            async def wait() -> bytes:
                return await channel.unary_unary(UU)(b"x", timeout=5)  # type: ignore[no-any-return]  # bytes

            task = asyncio.create_task(wait())
            await until(lambda: len(ended) == 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for event in ended:
                await asyncio.wait_for(event.wait(), 5)
            assert idle(channel)

    run(story())


def test_a_hedged_call_waits_for_an_endpoint_as_others_do() -> None:
    async def story() -> None:
        async with fleet(1) as hosts:
            async with mesh.connect(SERVICE, endpoints=[hosts[0].address], policies=policies()) as channel:
                calls = [channel.unary_unary(UU)(b"x", timeout=5) for _ in range(3)]
                assert await asyncio.gather(*calls) == [b"x"] * 3
                await hosts[0].stop()
                await until(lambda: not channel._pool.roster.pickable)
                call = channel.unary_unary(UU)(b"x", timeout=5)
                await asyncio.sleep(0.05)
                await hosts[0].start()
                assert await call == b"x"
                await hosts[0].stop()
                await until(lambda: not channel._pool.roster.pickable)
                with pytest.raises(mesh.CallError) as raised:
                    await channel.unary_unary(UU)(b"x", timeout=0.1)
                assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                waiting = channel.unary_unary(UU)(b"x", timeout=5)
            assert waiting.cancelled()

    run(story())


def test_a_call_that_nobody_awaits_is_hedged_too() -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            hang_first(hosts)
            call = channel.unary_unary(UU)(b"x", timeout=5)
            ended: list[Any] = []
            call.add_done_callback(ended.append)
            await until(call.done)
            assert ended == [call]
            assert await call == b"x"

    run(story())


def test_no_timer_is_set_for_calls_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[float] = []
    call_later = pacer.call_later

    def counted(seconds: float, look: Any) -> Any:
        armed.append(seconds)
        return call_later(seconds, look)

    monkeypatch.setattr(pacer, "call_later", counted)

    async def story() -> None:
        async with road(2) as (_, channel):
            unary = channel.unary_unary(UU)
            begun = time.monotonic()
            for _ in range(400):
                await unary(b"x")
            # One for each delay that passed, and perhaps another one for a call that had not ended then.
            assert 1 <= len(armed) <= 2 + 2 * (time.monotonic() - begun) / 0.05

    run(story())


def test_the_delay_follows_the_method_and_is_never_longer_than_the_policys() -> None:
    async def story() -> None:
        async with road(3, HedgingPolicy(max_attempts=3, delay=0.5)) as (hosts, channel):
            unary = channel.unary_unary(UU)
            pacer = channel._method("unary_unary", UU, None, None, False).pacer
            assert pacer.delay(time.monotonic()) == 0.5
            for _ in range(100):
                await unary(b"x")
            await until(lambda: pacer.delay(time.monotonic()) < 0.1)
            hang_first(hosts)
            begin = time.monotonic()
            assert await unary(b"x", timeout=5) == b"x"
            assert time.monotonic() - begin < 0.45
            for _ in range(100):
                pacer.took(2.0)
            await until(lambda: pacer.delay(time.monotonic()) == 0.5)

    run(story())


def test_hedges_are_paid_by_the_budget_and_retries_have_their_part_of_it() -> None:
    async def story() -> None:
        async with road(3, HedgingPolicy(max_attempts=2, delay=0.01, follow_p95=False)) as (hosts, channel):
            for host in hosts:
                host.answer = slow(0.1)
            unary = channel.unary_unary(UU)
            assert await asyncio.gather(*(unary(b"x", timeout=5) for _ in range(40))) == [b"x"] * 40
            # 40 calls that all take long: two thirds of what is saved is spent, the rest stays for failures.
            assert 40 < sum(host.calls for host in hosts) <= 51
            assert channel._pool.budget.withdraw(time.monotonic())

    run(story())


@pytest.mark.parametrize(("left", "made"), [("0", 1), ("1", 2)])
def test_a_call_made_for_another_is_hedged_by_what_that_one_has_left(left: str, made: int) -> None:
    async def story() -> None:
        async with road(3) as (hosts, channel):
            hang_first(hosts, 9)
            hop = Hop(time.monotonic() + 0.4, lambda: [(ATTEMPTS_LEFT, left)])
            token = CURRENT.set(hop)
            try:
                with pytest.raises(mesh.CallError):
                    await channel.unary_unary(UU)(b"x", timeout=5)
            finally:
                CURRENT.reset(token)
            assert sum(host.calls for host in hosts) == made
            assert {m[ATTEMPTS_LEFT] for host in hosts for m in host.metadata} == {left, "0"}

    run(story())


def test_an_override_switches_hedging_on_and_off() -> None:
    async def story() -> None:
        async with road(2) as (_, channel):
            method = channel._method("unary_unary", UU, None, None, False)
            unary = channel.unary_unary(UU)
            for hedging, kind in ((HedgingPolicy(), UnaryUnaryCall), (HEDGED, HedgedCall), (HEDGED, HedgedCall)):
                method.go_by(policies(hedging)[UU])
                call = unary(b"x")
                assert type(call) is kind
                assert await call == b"x"
            flown = unary(b"x")
            method.go_by(policies(HedgingPolicy())[UU])
            assert await flown == b"x"

    run(story())


@pytest.mark.parametrize("balancer", [Balancer.ROUND_ROBIN, Balancer.LEAST_LOADED])
def test_nothing_is_left_after_a_thousand_hedged_calls_of_every_fate(balancer: Balancer) -> None:
    """No call in flight, no task, no probe's permit: a breaker that lost one would stay half open for good."""

    async def story() -> None:
        dice = random.Random(7)
        hedging = HedgingPolicy(max_attempts=3, delay=0.005, follow_p95=False)
        breaker = BreakerPolicy(consecutive_failures=2, open_for=0.02, half_open_permits=1)
        async with road(3, hedging, breaker=breaker, balancer=BalancerPolicy(balancer)) as (hosts, channel):

            async def answer(message: bytes, context: Any) -> bytes:
                fate = dice.random()
                if fate < 0.15:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "refused by the test")
                if fate < 0.2:
                    await context.abort(grpc.StatusCode.NOT_FOUND, "not here")
                if fate < 0.4:
                    await asyncio.sleep(0.02)
                return message

            unary = channel.unary_unary(UU)
            await unary(b"x")
            tasks = len(asyncio.all_tasks())
            for host in hosts:
                host.answer = answer

            async def one() -> str:
                call = unary(b"x", timeout=dice.choice((0.01, 5)))
                if dice.random() < 0.2:
                    asyncio.get_running_loop().call_later(dice.random() * 0.02, call.cancel)
                return str(await call.code())

            seen = set()
            for _ in range(20):
                seen |= set(await asyncio.gather(*(one() for _ in range(50))))
            assert {"StatusCode.OK", "StatusCode.CANCELLED", "StatusCode.NOT_FOUND"} <= seen
            await until(lambda: idle(channel))
            slots = channel._pool.roster.slots
            assert all(slot.candidate is None or slot.candidate.load.in_flight == 0 for slot in slots)
            pacer = channel._method("unary_unary", UU, None, None, False).pacer
            await until(lambda: not pacer._waiting and pacer._timer is None)
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            for host in hosts:
                host.answer = echo
            # Many at once: one that was slow is the least loaded of two for half a minute only where others are busy.
            async with asyncio.timeout(30):
                while not all(slot.breaker.is_closed for slot in slots):
                    await asyncio.gather(*(unary(b"x", timeout=5) for _ in range(100)))

    run(story())


# -- a timeout for each attempt


def bounded(seconds: float, **more: Any) -> dict[str, Any]:

    return {"retry": QUICK._replace(attempt_timeout=seconds)} | more


def test_an_attempt_that_has_used_up_its_time_is_made_again_elsewhere() -> None:
    async def story() -> None:
        async with road(3, HedgingPolicy(), **bounded(0.1)) as (hosts, channel):
            ended = hang_first(hosts)
            begin = time.monotonic()
            call = channel.unary_unary(UU)(b"x", timeout=5)
            assert await call == b"x"
            assert 0.1 <= time.monotonic() - begin < 1
            assert [a.code for a in call.attempts] == ["DEADLINE_EXCEEDED"]
            await asyncio.wait_for(ended[0].wait(), 5)
            assert sorted(host.calls for host in hosts) == [0, 1, 1]

    run(story())


def test_the_calls_own_deadline_is_no_attempts_timeout() -> None:
    async def story() -> None:
        async with road(3, HedgingPolicy(), **bounded(0.1)) as (hosts, channel):
            hang_first(hosts, 9)
            with pytest.raises(mesh.CallError) as raised:
                await channel.unary_unary(UU)(b"x", timeout=0.25)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert 2 <= len(raised.value.attempts) <= 3
            with pytest.raises(mesh.CallError) as raised:
                await channel.unary_unary(UU)(b"x", timeout=0.05)
            assert len(raised.value.attempts) == 1

    run(story())


def test_what_may_not_be_repeated_has_all_the_time_there_is() -> None:
    async def story() -> None:
        async with road(2, HedgingPolicy(), **bounded(0.05, idempotent=False)) as (hosts, channel):
            for host in hosts:
                host.answer = slow(0.2)
            assert await channel.unary_unary(UU)(b"x", timeout=5) == b"x"

    run(story())


def test_a_stream_of_responses_has_no_timeout_of_its_attempts() -> None:
    async def story() -> None:
        async with road(2, HedgingPolicy(), **bounded(0.1)) as (hosts, channel):
            for host in hosts:
                host.answer = slow(0.08)
            assert len([m async for m in channel.unary_stream(US)(b"x")]) == 3

    run(story())


# -- from threads


def test_blocking_calls_are_hedged_too() -> None:
    async def story() -> None:
        async with fleet(3) as hosts:
            addresses = [host.address for host in hosts]

            def calls() -> tuple[float, int]:
                with mesh.blocking.connect(SERVICE, endpoints=addresses, policies=policies()) as channel:
                    grpc.channel_ready_future(channel).result(timeout=5)
                    unary = channel.unary_unary(UU)
                    while len(channel._inner._pool.roster.pickable) < 3:
                        unary(b"x", timeout=5)
                    hang_first(hosts)
                    begin = time.monotonic()
                    response, call = unary.with_call(b"y", timeout=5)
                    assert response == b"y"
                    return time.monotonic() - begin, len(call.attempts)

            seconds, lost = await asyncio.to_thread(calls)
            assert 0.05 <= seconds < 2
            assert lost == 1

    run(story())
