"""Which failed attempts the server surely did not process: what the library below writes, and whose words count."""

from __future__ import annotations

import asyncio
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc import aio

import mesh
import mesh.blocking
from mesh.policy import BreakerPolicy, MethodPolicy, RetryPolicy
from mesh.resilience.outcome import BREAKER_IS_OPEN, FORCED_OPEN, was_surely_not_processed
from support.fleet import QUICK, SERVICE, UU, Answer, Host, echo, fleet, refuse, until
from support.still import Clock

WRITES = {UU: MethodPolicy(retry=QUICK)}
REFUSED = "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))"
ELSEWHERE = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused"
PLAIN = [("grpc.enable_retries", 0)]


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


async def error_of(call: Any) -> Any:
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    return raised.value


def is_unsent(error: Any, address: str | None) -> bool:
    return was_surely_not_processed(error.code().name, error.details(), address)


# -- what grpc writes, and we read


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "nobody.invalid:1"])
def test_an_address_that_cannot_be_connected_to_is_named_and_its_channel_is_not_ready(address: str) -> None:
    async def story() -> None:
        async with aio.insecure_channel(address, options=PLAIN) as plain:
            error = await error_of(plain.unary_unary(UU)(b"x", timeout=20))
            assert plain.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        assert is_unsent(error, address)
        assert not is_unsent(error, address.rpartition(":")[0] + ":2")
        assert not is_unsent(error, None)
        assert not error.trailing_metadata()

    run(story())


def test_a_blocking_channel_writes_the_same() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as plain, pytest.raises(grpc.RpcError) as raised:
        plain.unary_unary(UU)(b"x", timeout=20)
    assert is_unsent(raised.value, "127.0.0.1:1")


_PROGRAM = textwrap.dedent("""
    import asyncio, grpc
    from grpc import aio

    async def echo(message, context):
        return message

    async def main():
        server = aio.server()
        handlers = {"UU": grpc.unary_unary_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Test", handlers),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())
""")


def test_a_killed_server_proves_nothing() -> None:
    async def story(process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        address = f"127.0.0.1:{int(process.stdout.readline())}"
        async with aio.insecure_channel(address, options=PLAIN) as plain:
            await plain.unary_unary(UU)(b"x")
            process.send_signal(signal.SIGSTOP)
            call = plain.unary_unary(UU)(b"x")
            await asyncio.sleep(0.1)
            process.kill()
            error = await error_of(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert not is_unsent(error, address)

    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE) as process:
        try:
            run(story(process))
        finally:
            process.kill()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


async def _refuse_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak just enough HTTP/2 to answer every request with RST_STREAM, REFUSED_STREAM."""
    await reader.readexactly(24)
    writer.write(_frame(4, 0, 0))
    try:
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3]))
            if head[3] == 4 and not head[4] & 1:
                writer.write(_frame(4, 1, 0))
            if head[3] == 1:
                writer.write(_frame(3, 0, int.from_bytes(head[5:]), struct.pack(">I", 7)))
    except asyncio.IncompleteReadError:
        writer.close()


def test_a_refused_stream_is_surely_not_processed_and_goes_elsewhere_whatever_the_method() -> None:
    async def story() -> None:
        server = await asyncio.start_server(_refuse_streams, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with aio.insecure_channel(f"{host}:{port}", options=PLAIN) as plain:
            assert is_unsent(await error_of(plain.unary_unary(UU)(b"x", timeout=5)), None)
        async with fleet(1) as hosts:
            addresses = [f"{host}:{port}", hosts[0].address]
            async with mesh.connect(SERVICE, endpoints=addresses, policies=WRITES) as channel:
                await until(lambda: len(channel._pool.roster.pickable) == 2)
                for _ in range(6):
                    assert await channel.unary_unary(UU)(b"x", timeout=5) == b"x"
        server.close()

    run(story())


# -- what the client makes of it


def test_a_write_that_met_no_connection_goes_elsewhere_whatever_the_method() -> None:
    async def story() -> None:
        async with fleet(2) as hosts:
            addresses = [host.address for host in hosts]
            async with mesh.connect(SERVICE, endpoints=addresses, policies=WRITES) as channel:
                roster = channel._pool.roster
                await until(lambda: len(roster.pickable) == 2)
                await hosts[0].stop()
                gone = next(slot for slot in roster.slots if slot.name == hosts[0].address)
                await until(lambda: gone.failing)
                # As where a call is quicker than the news of its connection.
                roster.connection_changed(gone, 0.0, connected=True)
                calls = [channel.unary_unary(UU)(b"x", timeout=5) for _ in range(2)]
                assert [await call for call in calls] == [b"x", b"x"]
                assert sorted(len(call.attempts) for call in calls) == [0, 1]

    run(story())


async def _asyncio_write(addresses: list[str]) -> None:
    async with mesh.connect(SERVICE, endpoints=addresses, policies=WRITES) as channel:
        await until(lambda: len(channel._pool.roster.pickable) == len(addresses))
        with pytest.raises(aio.AioRpcError) as raised:
            await channel.unary_unary(UU)(b"write", timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def _blocking_write(addresses: list[str]) -> None:
    def write() -> None:
        with (
            mesh.blocking.connect(SERVICE, endpoints=addresses, policies=WRITES) as channel,
            pytest.raises(grpc.RpcError) as raised,
        ):
            channel.unary_unary(UU)(b"write", timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

    await asyncio.to_thread(write)


async def _intercepted_write(addresses: list[str]) -> None:
    async with aio.insecure_channel(addresses[0], interceptors=[mesh.RetryInterceptor(WRITES)]) as channel:
        await error_of(channel.unary_unary(UU)(b"write", timeout=5))


async def _blocking_intercepted_write(addresses: list[str]) -> None:
    def write() -> None:
        with grpc.insecure_channel(addresses[0]) as plain:
            write = grpc.intercept_channel(plain, mesh.blocking.RetryInterceptor(WRITES)).unary_unary(UU)
            with pytest.raises(grpc.RpcError):
                write(b"write", timeout=5)

    await asyncio.to_thread(write)


WAYS = {
    "asyncio": _asyncio_write,
    "blocking": _blocking_write,
    "interceptor": _intercepted_write,
    "blocking interceptor": _blocking_intercepted_write,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    "words",
    [
        ELSEWHERE,
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:{own}: Connection refused",
        "DNS resolution failed for {own}: not found",
        f"{REFUSED} (1 attempt: 127.0.0.1:1 UNAVAILABLE 1 ms)",
        f"{BREAKER_IS_OPEN}",
        f"t.Test is closed to its callers: {FORCED_OPEN} (mesh/policies/t.Test)",
    ],
)
def test_a_server_s_words_have_no_write_repeated(way: Callable[[list[str]], Awaitable[None]], words: str) -> None:
    async def story() -> None:
        async with fleet(2) as hosts:
            for host in hosts:
                host.answer = refuse("UNAVAILABLE", words.format(own=host.address))
            await way([host.address for host in hosts])
            assert sum(host.calls for host in hosts) == 1

    run(story())


async def _pass_on(message: bytes, context: Any) -> bytes:
    """Call a server that is not there, and answer what that said."""
    async with aio.insecure_channel("127.0.0.1:1") as gone:
        error = await error_of(gone.unary_unary(UU)(message))
    await context.abort(error.code(), error.details())
    raise AssertionError


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_handler_that_passes_a_refused_connection_on_is_asked_once(
    way: Callable[[list[str]], Awaitable[None]],
) -> None:
    async def story() -> None:
        async with fleet(2) as hosts:
            for host in hosts:
                host.answer = _pass_on
            await way([host.address for host in hosts])
            assert sum(host.calls for host in hosts) == 1

    run(story())


def test_a_server_that_leaves_may_pass_a_refused_connection_on_too() -> None:
    """Its connection takes no more calls, and those in flight end on it."""

    async def story() -> None:
        leaving = Host()
        await leaving.start()
        go_on = asyncio.Event()

        async def late(message: bytes, context: Any) -> bytes:
            await go_on.wait()
            return await _pass_on(message, context)

        leaving.answer = late
        async with (
            fleet(1) as hosts,
            mesh.connect(SERVICE, endpoints=[leaving.address, hosts[0].address], policies=WRITES) as channel,
        ):
            roster = channel._pool.roster
            await until(lambda: len(roster.pickable) == 2)
            calls = [channel.unary_unary(UU)(b"write", timeout=5) for _ in range(2)]
            await until(lambda: leaving.calls)
            assert leaving._server is not None
            ending = asyncio.ensure_future(leaving._server.stop(5))
            await until(lambda: len(roster.pickable) == 1)
            go_on.set()
            codes = sorted([(await call.code()).name for call in calls])
            await ending
            assert codes == ["OK", "UNAVAILABLE"]
            assert hosts[0].calls == 1

    run(story())


def test_a_write_that_a_breaker_did_not_let_through_is_tried_again() -> None:
    async def story() -> None:
        clock = Clock()
        policies = {UU: MethodPolicy(retry=RetryPolicy(initial_backoff=100.0, max_backoff=100.0))}
        breaker = mesh.BreakerInterceptor(BreakerPolicy(consecutive_failures=1, open_for=30.0), clock=clock)
        retry = mesh.RetryInterceptor(policies, clock=clock)
        async with fleet(1) as hosts:
            async with aio.insecure_channel(hosts[0].address, interceptors=[retry, breaker]) as channel:
                hosts[0].answer = refuse("INTERNAL")
                await error_of(channel.unary_unary(UU)(b"write"))
                hosts[0].answer = echo
                assert await channel.unary_unary(UU)(b"write") == b"write"
            assert hosts[0].calls == 2

    run(story())


def test_a_blocking_write_that_a_breaker_did_not_let_through_is_tried_again() -> None:
    def writes(address: str, answer: Callable[[Answer], None]) -> None:
        clock = Clock()
        policies = {UU: MethodPolicy(retry=RetryPolicy(initial_backoff=100.0, max_backoff=100.0))}
        breaker = mesh.blocking.BreakerInterceptor(BreakerPolicy(consecutive_failures=1, open_for=30.0), clock=clock)
        retry = mesh.blocking.RetryInterceptor(policies, clock=clock, sleep=clock.wait)
        with grpc.insecure_channel(address) as plain:
            write = grpc.intercept_channel(plain, retry, breaker).unary_unary(UU)
            answer(refuse("INTERNAL"))
            with pytest.raises(grpc.RpcError):
                write(b"write")
            answer(echo)
            assert write(b"write") == b"write"

    async def story() -> None:
        async with fleet(1) as hosts:
            await asyncio.to_thread(writes, hosts[0].address, lambda answer: setattr(hosts[0], "answer", answer))
            assert hosts[0].calls == 2

    run(story())
