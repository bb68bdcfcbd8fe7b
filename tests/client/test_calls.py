"""Unary calls through a mesh channel behave as grpc.aio's own, and better where something breaks."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Any

import grpc
import pytest
from grpc import aio
from prometheus_client import REGISTRY

import mesh
from mesh.policy import MethodPolicy
from support.fleet import IDEMPOTENT, QUICK, SERVICE, UU, fleet, refuse, slow, until
from users.v1 import users_pb2


def channel_to(hosts: Any, **options: Any) -> Any:
    return mesh.connect(SERVICE, endpoints=[h.address for h in hosts], **{"policies": IDEMPOTENT} | options)


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


async def failure(call: Any) -> Any:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    assert isinstance(raised.value, mesh.CallError)
    return raised.value


def test_calls_are_spread_over_all_endpoints() -> None:
    async def story() -> None:
        async with fleet(3) as hosts, channel_to(hosts) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            unary = channel.unary_unary(UU)
            assert await asyncio.gather(*(unary(b"x") for _ in range(30))) == [b"x"] * 30
            assert [h.calls for h in hosts] == [10, 10, 10]

    run(story())


def test_a_call_offers_what_grpc_aio_offers() -> None:
    async def story() -> None:
        async def answer(message: bytes, context: Any) -> bytes:
            await context.send_initial_metadata((("first", "1"),))
            context.set_trailing_metadata((("last", "2"),))
            return message

        async with fleet(1) as hosts, channel_to(hosts) as channel:
            hosts[0].answer = answer
            call = channel.unary_unary(UU)(b"x", timeout=5, metadata=(("asked", "yes"),))
            ended: list[Any] = []
            call.add_done_callback(ended.append)
            assert not call.done()
            assert 0 < call.time_remaining() <= 5
            await call.wait_for_connection()
            assert dict(await call.initial_metadata())["first"] == "1"
            assert await call == b"x"
            assert await call == b"x"
            assert await call.code() is grpc.StatusCode.OK
            assert await call.details() == ""
            assert dict(await call.trailing_metadata()) == {"last": "2"}
            assert ended == [call]
            call.add_done_callback(ended.append)
            assert ended == [call, call]
            assert (call.done(), call.cancelled(), call.cancel()) == (True, False, False)
            assert hosts[0].metadata[0]["asked"] == "yes"

    run(story())


def test_a_call_makes_its_way_even_if_nobody_awaits_it() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts) as channel:
            hosts[0].answer = refuse("UNAVAILABLE")
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            unary = channel.unary_unary(UU)
            calls = [unary(b"x") for _ in range(4)]
            assert [await call.code() for call in calls] == [grpc.StatusCode.OK] * 4
            assert sum(len(call.attempts) for call in calls) == 2

    run(story())


def test_another_attempt_goes_to_another_endpoint_and_says_how_many_there_were() -> None:
    async def story() -> None:
        async with fleet(3) as hosts, channel_to(hosts) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            unary = channel.unary_unary(UU)
            # As many extra attempts as calls are more than a budget pays for that has not saved.
            await asyncio.gather(*(unary(b"x") for _ in range(120)))
            for host in hosts:
                host.metadata.clear()
            hosts[0].answer = hosts[1].answer = refuse("UNAVAILABLE")
            for _ in range(6):
                call = unary(b"x")
                assert await call == b"x"
                assert len({a.endpoint for a in call.attempts}) == len(call.attempts)
            told = Counter(m.get("grpc-previous-rpc-attempts") for h in hosts for m in h.metadata)
            assert told[None] == 6
            assert told["1"] > 0
            assert told["2"] > 0

    run(story())


def test_a_failed_call_tells_every_attempt() -> None:
    async def story() -> None:
        async with fleet(3) as hosts, channel_to(hosts) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            for host in hosts:
                host.answer = refuse("UNAVAILABLE", "overloaded")
            error = await failure(channel.unary_unary(UU)(b"x"))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert [a.code for a in error.attempts] == ["UNAVAILABLE"] * 4
            assert {a.endpoint for a in error.attempts} == {h.address for h in hosts}
            assert error.attempts == mesh.attempts(error)
            details = error.details()
            assert details.startswith("overloaded (4 attempts: ")
            assert all(h.address in details for h in hosts)

    run(story())


def test_an_answer_of_the_application_is_left_as_it_is() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            hosts[0].answer = refuse("NOT_FOUND", "no such thing", (("why", "gone"),))
            error = await failure(channel.unary_unary(UU)(b"x"))
            assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
            assert dict(error.trailing_metadata()) == {"why": "gone"}
            assert len(error.attempts) == hosts[0].calls == 1

    run(story())


def test_what_is_not_idempotent_is_sent_once() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts, policies={UU: MethodPolicy(retry=QUICK)}) as channel:
            for host in hosts:
                host.answer = refuse("UNAVAILABLE")
            await failure(channel.unary_unary(UU)(b"x"))
            assert hosts[0].calls + hosts[1].calls == 1

    run(story())


def test_what_never_left_is_sent_elsewhere_whatever_the_method() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts, policies={UU: MethodPolicy(retry=QUICK)}) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            dead = channel._pool.roster.slots[0]
            await hosts[0].stop()
            await until(lambda: not dead.connected)
            # As if the watch had not heard of it yet.
            dead.connection._closed, dead.connected = True, True
            channel._pool.roster._arrange()
            unary = channel.unary_unary(UU)
            calls = [unary(b"x") for _ in range(4)]
            assert [await c for c in calls] == [b"x"] * 4
            assert [a.code for c in calls for a in c.attempts] == ["UNAVAILABLE"] * 2
            dead.connection._closed = False

    run(story())


def test_pushback_is_obeyed() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            hosts[0].answer = refuse("UNAVAILABLE", trailing=(("grpc-retry-pushback-ms", "-1"),))
            await failure(channel.unary_unary(UU)(b"x"))
            assert hosts[0].calls == 1
            hosts[0].answer = refuse("UNAVAILABLE", trailing=(("grpc-retry-pushback-ms", "60"),))
            loop = asyncio.get_running_loop()
            before = loop.time()
            await failure(channel.unary_unary(UU)(b"x"))
            assert loop.time() - before >= 0.18
            assert hosts[0].calls == 5

    run(story())


def test_the_deadline_spans_all_attempts() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts) as channel:
            for host in hosts:
                host.answer = slow(10)
            loop = asyncio.get_running_loop()
            before = loop.time()
            error = await failure(channel.unary_unary(UU)(b"x", timeout=0.2))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert 0.15 < loop.time() - before < 1.0

    run(story())


def test_a_call_without_a_deadline_has_its_policys() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts, policies={UU: MethodPolicy(timeout=0.1)}) as channel:
            hosts[0].answer = slow(10)
            assert (await failure(channel.unary_unary(UU)(b"x"))).code() is grpc.StatusCode.DEADLINE_EXCEEDED

    run(story())


@pytest.mark.parametrize("timeout", [0, -1, -math.inf, math.nan])
def test_a_deadline_that_is_over_fails_at_once_and_sends_nothing(timeout: float) -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            error = await failure(channel.unary_unary(UU)(b"x", timeout=timeout))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert hosts[0].calls == 0

    run(story())


@pytest.mark.parametrize("timeout", [10 * 365 * 86400.0, 1e18, math.inf])
def test_an_absurd_deadline_is_capped(timeout: float) -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            call = channel.unary_unary(UU)(b"x", timeout=timeout)
            assert call.time_remaining() <= 86400
            assert await call == b"x"

    run(story())


@pytest.mark.parametrize(
    "metadata",
    [
        [("key", "a\r\nb: c")],
        [("key", "ü")],
        [("key", 7)],
        [("Key", "value")],
        [("k\u00e9y", "value")],
        [("key-bin", "text")],
        [("", "value")],
        [(7, "value")],
        ["key"],
        7,
    ],
)
def test_bad_metadata_is_an_invalid_argument(metadata: Any) -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            error = await failure(channel.unary_unary(UU)(b"x", metadata=metadata))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "metadata" in error.details()
            assert hosts[0].calls == 0

    run(story())


def test_a_request_that_cannot_be_serialized_is_an_internal_error() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            error = await failure(channel.unary_unary(UU)("text, not bytes"))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert hosts[0].calls == 0

    run(story())


def test_cancelling_the_awaiting_task_cancels_the_call() -> None:
    async def story() -> None:
        cancelled = asyncio.Event()

        async def answer(message: bytes, context: Any) -> bytes:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return message

        async with fleet(1) as hosts, channel_to(hosts) as channel:
            hosts[0].answer = answer
            call = channel.unary_unary(UU)(b"x")

            async def wait() -> None:
                await call

            task = asyncio.create_task(wait())
            await until(lambda: hosts[0].calls)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(cancelled.wait(), 5)
            assert call.cancelled()
            assert await call.code() is grpc.StatusCode.CANCELLED

    run(story())


def test_a_cancelled_call_is_not_tried_again_and_raises_cancelled_error() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts) as channel:
            for host in hosts:
                host.answer = slow(10)
            call = channel.unary_unary(UU)(b"x")
            await until(lambda: hosts[0].calls + hosts[1].calls)
            assert call.cancel()
            assert not call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await call.details() == "Locally cancelled by application!"
            assert hosts[0].calls + hosts[1].calls == 1

    run(story())


def test_cancelling_between_attempts_ends_the_call() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            hosts[0].answer = refuse("UNAVAILABLE", trailing=(("grpc-retry-pushback-ms", "5000"),))
            call = channel.unary_unary(UU)(b"x")
            await until(lambda: call.attempts)
            assert not call.done()
            call.cancel()
            assert call.cancelled()
            with pytest.raises(asyncio.CancelledError):
                await call

    run(story())


def test_several_may_await_one_call() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            hosts[0].answer = refuse("UNAVAILABLE")
            for _ in range(2):
                call = channel.unary_unary(UU)(b"x")

                async def wait(call: Any = call) -> Any:
                    return await call

                assert await asyncio.gather(*(wait() for _ in range(5))) == [b"x"] * 5

    run(story())


def test_a_cancelled_answer_that_nobody_asked_for_is_tried_again() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            hosts[0].answer = refuse("CANCELLED", "the server is going")
            for _ in range(4):
                assert await channel.unary_unary(UU)(b"x") == b"x"

    run(story())


def test_closing_the_channel_cancels_what_is_in_flight_and_ends_new_calls() -> None:
    async def story() -> None:
        async with fleet(1) as hosts:
            hosts[0].answer = slow(10)
            channel = channel_to(hosts)
            call = channel.unary_unary(UU)(b"x")
            await until(lambda: hosts[0].calls)
            await channel.close()
            await channel.close()
            assert call.cancelled()
            with pytest.raises(aio.UsageError):
                channel.unary_unary(UU)(b"x")
            assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN

    run(story())


def test_closing_with_grace_lets_calls_finish() -> None:
    async def story() -> None:
        async with fleet(1) as hosts:
            hosts[0].answer = slow(0.1)
            channel = channel_to(hosts)
            call = channel.unary_unary(UU)(b"x")
            await until(lambda: hosts[0].calls)
            await channel.close(grace=5)
            assert await call == b"x"

    run(story())


def test_another_loop_is_told_to_make_its_own_channel() -> None:
    holder: list[Any] = []

    async def first() -> None:
        holder.append(mesh.connect(SERVICE, endpoints=["127.0.0.1:1"]))
        holder[0].get_state(try_to_connect=True)
        await holder[0].close()

    async def second() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            holder[0].unary_unary(UU)(b"x")

    asyncio.run(first())
    holder[0]._pool.closed = False
    asyncio.run(second())


def test_stubs_made_anew_for_each_call_do_not_pile_up() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            for _ in range(50):
                await channel.unary_unary(UU, users_pb2.User.SerializeToString, users_pb2.User.FromString)(
                    users_pb2.User(id="7")
                )
            assert len(channel._methods) == len(channel._pool.roster.slots[0].calls) == 1
            for _ in range(1200):
                await channel.unary_unary(UU, lambda message: message)(b"x")
            assert len(channel._methods) <= 1024
            assert len(channel._pool.roster.slots[0].calls) <= 1024

    run(story())


def test_calls_are_counted_once_each_whatever_became_of_them() -> None:
    def count(name: str, code: str) -> float:
        labels = {"service": SERVICE, "method": "UU"} | ({"code": code} if code else {})
        return REGISTRY.get_sample_value(name, labels) or 0.0

    def counts() -> list[float]:
        return [
            count("mesh_client_calls_total", "OK"),
            count("mesh_client_calls_total", "NOT_FOUND"),
            count("mesh_client_attempts_total", "OK"),
            count("mesh_client_attempts_total", "UNAVAILABLE"),
            count("mesh_client_call_seconds_count", ""),
        ]

    async def story() -> None:
        before = counts()
        async with fleet(2) as hosts, channel_to(hosts) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            unary = channel.unary_unary(UU)
            for _ in range(10):
                await unary(b"x")
            hosts[0].answer = refuse("UNAVAILABLE")
            tried = [unary(b"x") for _ in range(2)]
            assert [await call for call in tried] == [b"x"] * 2
            hosts[0].answer = hosts[1].answer = refuse("NOT_FOUND")
            await failure(unary(b"x"))
        told = [now - then for now, then in zip(counts(), before, strict=True)]
        assert told == [12, 1, 12, 1, 13]
        assert REGISTRY.get_sample_value("mesh_client_endpoints", {"service": SERVICE, "state": "ready"}) == 0

    run(story())


def test_a_channel_may_be_made_where_no_loop_runs() -> None:
    channel = mesh.connect(SERVICE, endpoints=["127.0.0.1:1"])
    stub = channel.unary_unary(UU)

    async def story() -> None:
        assert (await failure(stub(b"x", wait_for_ready=False))).code() is grpc.StatusCode.UNAVAILABLE
        await channel.close()

    run(story())


def test_bad_names_are_refused_at_the_door() -> None:
    for service in ("", "a/b", "..", "users.v1.", "a b"):
        with pytest.raises(mesh.InvalidName):
            mesh.connect(service, endpoints=["127.0.0.1:1"])
    with pytest.raises(mesh.InvalidName):
        mesh.connect(SERVICE, endpoints=["127.0.0.1:99999"])
