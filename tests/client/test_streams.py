"""Calls with streams through a mesh channel: as grpc.aio's, with further attempts until the answer has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from grpc import aio

import mesh
from mesh.client.tape import LIMIT_BYTES
from support.fleet import IDEMPOTENT, SERVICE, SS, SU, US, Host, fleet, refuse, until


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


async def two_one_broken(hosts: list[Host], channel: Any) -> None:
    """Let every second call begin at a host that refuses."""
    await until(lambda: len(channel._pool.roster.pickable) == 2)
    hosts[0].answer = refuse("UNAVAILABLE")


def channel_to(hosts: list[Host]) -> Any:
    return mesh.connect(SERVICE, endpoints=[h.address for h in hosts], policies=IDEMPOTENT)


async def letters() -> AsyncIterator[bytes]:
    for letter in (b"a", b"b", b"c"):
        yield letter


def test_responses_are_iterated() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            call = channel.unary_stream(US)(b"x")
            assert [m async for m in call] == [b"x0", b"x1", b"x2"]
            assert await call.code() is grpc.StatusCode.OK

    run(story())


def test_responses_are_read_until_eof() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            call = channel.unary_stream(US)(b"x")
            assert [await call.read() for _ in range(3)] == [b"x0", b"x1", b"x2"]
            assert await call.read() is aio.EOF
            assert await call.read() is aio.EOF

    run(story())


def test_styles_of_reading_are_not_mixed() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            call = channel.unary_stream(US)(b"x")
            await call.read()
            with pytest.raises(aio.UsageError):
                call.__aiter__()

    run(story())


@pytest.mark.parametrize("requests", [letters, lambda: iter([b"a", b"b", b"c"]), lambda: [b"a", b"b", b"c"]])
def test_requests_come_from_any_iterable(requests: Any) -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            assert await channel.stream_unary(SU)(requests()) == b"a b c"
            assert [m async for m in channel.stream_stream(SS)(requests())] == [b"a", b"b", b"c"]

    run(story())


def test_requests_are_written() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            call = channel.stream_unary(SU)()
            for letter in (b"a", b"b"):
                await call.write(letter)
            await call.done_writing()
            await call.done_writing()
            with pytest.raises(asyncio.InvalidStateError):
                await call.write(b"c")
            assert await call == b"a b"
            with pytest.raises(asyncio.InvalidStateError):
                await call.write(b"c")

    run(story())


def test_both_ways_at_once() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            call = channel.stream_stream(SS)()
            for number in range(50):
                message = str(number).encode()
                await call.write(message)
                assert await call.read() == message
            await call.done_writing()
            assert await call.read() is aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    run(story())


def test_a_stream_is_tried_again_before_its_first_response() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts) as channel:
            await two_one_broken(hosts, channel)
            calls = [channel.unary_stream(US)(b"x") for _ in range(4)]
            assert [[m async for m in call] for call in calls] == [[b"x0", b"x1", b"x2"]] * 4
            assert sum(len(call.attempts) for call in calls) == 2

    run(story())


@pytest.mark.parametrize("requests", [letters, None])
def test_requests_are_sent_again_with_another_attempt(requests: Any) -> None:
    async def story() -> None:
        async with fleet(2) as hosts, channel_to(hosts) as channel:
            await two_one_broken(hosts, channel)
            for _ in range(4):
                call = channel.stream_unary(SU)(requests() if requests else None)
                if requests is None:
                    for letter in (b"a", b"b", b"c"):
                        await call.write(letter)
                    await call.done_writing()
                assert await call == b"a b c"
            for _ in range(4):
                call = channel.stream_stream(SS)(requests() if requests else None)
                if requests is None:
                    for letter in (b"a", b"b", b"c"):
                        await call.write(letter)
                    await call.done_writing()
                assert [m async for m in call] == [b"a", b"b", b"c"]
            assert hosts[0].calls >= 2

    run(story())


def test_after_a_response_a_break_is_told_and_not_tried_again() -> None:
    async def story() -> None:
        async def answer(message: bytes, context: Any) -> bytes:
            if message.endswith(b"1"):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broke off")
            return message

        async with fleet(2) as hosts, channel_to(hosts) as channel:
            for host in hosts:
                host.answer = answer
            call = channel.unary_stream(US)(b"x")
            assert await call.read() == b"x0"
            with pytest.raises(mesh.CallError, match="broke off") as raised:
                await call.read()
            assert len(raised.value.attempts) == 1
            assert hosts[0].calls + hosts[1].calls == 1

    run(story())


def test_a_caller_who_saw_the_first_metadata_is_committed_to_that_attempt() -> None:
    async def story() -> None:
        go = asyncio.Event()

        async def answer(message: bytes, context: Any) -> bytes:
            await context.send_initial_metadata((("who", "me"),))
            await go.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "broke off")
            raise AssertionError

        async with fleet(1) as hosts, channel_to(hosts) as channel:
            hosts[0].answer = answer
            call = channel.unary_stream(US)(b"x")
            assert dict(await call.initial_metadata())["who"] == "me"
            go.set()
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert hosts[0].calls == 1

    run(story())


def test_a_call_that_outgrew_the_memory_for_requests_is_committed() -> None:
    async def story() -> None:
        received = asyncio.Event()

        async def answer(message: bytes, context: Any) -> bytes:
            if message == b"end":
                received.set()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "too late")
            return b""

        def requests() -> Iterator[bytes]:
            yield from [bytes(LIMIT_BYTES // 4)] * 5
            yield b"end"

        async with fleet(1) as hosts, channel_to(hosts) as channel:
            hosts[0].answer = answer
            with pytest.raises(mesh.CallError) as raised:
                await channel.stream_unary(SU)(requests())
            assert received.is_set()
            assert len(raised.value.attempts) == hosts[0].calls == 1

    run(story())


def test_a_request_iterator_that_raises_cancels_the_call() -> None:
    async def story() -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"a"
            raise LookupError

        async with fleet(1) as hosts, channel_to(hosts) as channel:
            call = channel.stream_unary(SU)(broken())
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await call.code() is grpc.StatusCode.CANCELLED

    run(story())


def test_cancelling_a_reader_cancels_the_call() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, channel_to(hosts) as channel:
            call = channel.stream_stream(SS)()
            await call.write(b"a")
            await call.read()
            reader = asyncio.create_task(call.read())
            await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            assert await call.code() is grpc.StatusCode.CANCELLED

    run(story())


def test_streams_wait_for_an_instance_and_name_the_lack() -> None:
    async def story() -> None:
        async with mesh.connect(SERVICE, endpoints=["127.0.0.1:1"]) as channel:
            for make in (
                lambda: channel.unary_stream(US)(b"x", timeout=0.05),
                lambda: channel.stream_stream(SS)(letters(), timeout=0.05),
            ):
                with pytest.raises(mesh.CallError, match="can be reached") as raised:
                    async for _ in make():
                        pass
                assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            with pytest.raises(mesh.CallError, match="can be reached"):
                await channel.stream_unary(SU)(letters(), timeout=0.05)
            call = channel.stream_unary(SU)(timeout=0.05)
            with pytest.raises(mesh.CallError, match="can be reached"):
                await call.write(b"a")

    run(story())
