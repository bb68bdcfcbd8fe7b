"""The blocking twin: grpc.Channel's calls, with the mesh's decisions."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import mesh
from mesh.client.blocking_error import BlockingCallError
from mesh.resilience.hops import CURRENT, Hop
from support.fleet import IDEMPOTENT, SERVICE, SS, SU, US, UU, Host, refuse, slow


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two servers on a loop of their own thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers = [Host(), Host()]
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    yield servers
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def channel(hosts: list[Host]) -> Iterator[Any]:
    with mesh.blocking.connect(SERVICE, endpoints=[h.address for h in hosts], policies=IDEMPOTENT) as made:
        grpc.channel_ready_future(made).result(timeout=5)  # one of the two
        end = time.monotonic() + 10
        while len(made._inner._pool.roster.pickable) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        yield made


def test_it_is_a_grpc_channel(channel: Any) -> None:
    assert isinstance(channel, grpc.Channel)


def test_unary_calls(channel: Any) -> None:
    unary = channel.unary_unary(UU)
    assert unary(b"x", timeout=5) == b"x"
    response, call = unary.with_call(b"x", 5, (("key", "value"),))
    assert (response, call.code(), call.details()) == (b"x", grpc.StatusCode.OK, "")
    assert call.trailing_metadata() == ()
    future = unary.future(b"x")
    ended: list[Any] = []
    future.add_done_callback(ended.append)
    assert future.result(timeout=5) == b"x"
    assert future.exception() is None
    assert future.traceback() is None
    assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)
    future.add_done_callback(ended.append)
    assert ended == [future, future]


def test_streams(channel: Any) -> None:
    assert list(channel.unary_stream(US)(b"x")) == [b"x0", b"x1", b"x2"]
    assert channel.stream_unary(SU)(iter([b"a", b"b"])) == b"a b"
    assert channel.stream_unary(SU).with_call(iter([b"a"]))[1].code() is grpc.StatusCode.OK
    assert channel.stream_unary(SU).future(iter([b"a"])).result() == b"a"
    assert list(channel.stream_stream(SS)(iter([b"a", b"b"]))) == [b"a", b"b"]


@pytest.mark.parametrize("hop", [None, Hop(1e9, lambda: None)], ids=["alone", "for another call"])
def test_a_stream_that_its_reader_drops_ends_at_the_server(channel: Any, hosts: list[Host], hop: Hop | None) -> None:
    ended = threading.Event()

    async def endless(message: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda _: ended.set())
        if message.endswith(b"1"):
            await asyncio.sleep(60)
        return message

    hosts[0].answer = hosts[1].answer = endless
    token = CURRENT.set(hop)
    for message in channel.unary_stream(US)(b"x"):
        assert message == b"x0"
        break
    CURRENT.reset(token)
    assert ended.wait(5)


def test_a_conversation(channel: Any) -> None:
    turn = threading.Semaphore(1)

    def requests() -> Iterator[bytes]:
        for number in range(5):
            turn.acquire()
            yield str(number).encode()

    heard = []
    for message in channel.stream_stream(SS)(requests()):
        heard.append(message)
        turn.release()
    assert heard == [b"0", b"1", b"2", b"3", b"4"]


def test_a_failure_is_an_rpc_error_that_tells_every_attempt(hosts: list[Host], channel: Any) -> None:
    for host in hosts:
        host.answer = refuse("UNAVAILABLE", "down")
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(UU)(b"x")
    error: Any = raised.value
    assert isinstance(error, BlockingCallError)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert [a.code for a in mesh.attempts(error)] == ["UNAVAILABLE"] * 4
    assert error.details().startswith("down (4 attempts: ")
    with pytest.raises(BlockingCallError, match="down"):
        list(channel.unary_stream(US)(b"x"))
    future = channel.unary_unary(UU).future(b"x")
    assert isinstance(future.exception(), BlockingCallError)
    assert future.code() is grpc.StatusCode.UNAVAILABLE


def test_attempts_go_elsewhere(hosts: list[Host], channel: Any) -> None:
    hosts[0].answer = refuse("UNAVAILABLE")
    for _ in range(4):
        assert channel.unary_unary(UU)(b"x") == b"x"
        assert channel.stream_unary(SU)(iter([b"a", b"b"])) == b"a b"


def test_deadlines_hold(hosts: list[Host], channel: Any) -> None:
    for host in hosts:
        host.answer = slow(10)
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(UU)(b"x", timeout=0.1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.FutureTimeoutError):
        channel.unary_unary(UU).future(b"x", timeout=1).result(timeout=0.05)


def test_cancelling(hosts: list[Host], channel: Any) -> None:
    for host in hosts:
        host.answer = slow(10)
    future = channel.unary_unary(UU).future(b"x")
    assert future.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        future.result(timeout=5)
    assert future.cancelled()
    stream = channel.unary_stream(US)(b"x")
    threading.Timer(0.05, stream.cancel).start()
    with pytest.raises(grpc.RpcError) as raised:
        next(stream)
    assert raised.value.code() is grpc.StatusCode.CANCELLED


def test_a_request_iterator_that_raises_ends_the_call(channel: Any) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise LookupError

    with pytest.raises(grpc.RpcError) as raised:
        channel.stream_unary(SU)(broken())
    assert raised.value.code() is grpc.StatusCode.CANCELLED


def test_many_threads_share_a_channel(hosts: list[Host], channel: Any) -> None:
    unary = channel.unary_unary(UU)
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda _: unary(b"x"), range(200))) == [b"x"] * 200
    assert hosts[0].calls == hosts[1].calls == 100


def test_bad_metadata_is_an_invalid_argument(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(UU)(b"x", metadata=(("key", "a\r\nb"),))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_service_without_an_instance_is_named() -> None:
    with (
        mesh.blocking.connect(SERVICE, endpoints=["127.0.0.1:1"]) as channel,
        pytest.raises(grpc.RpcError, match=r"no instance of t.Test can be reached"),
    ):
        channel.unary_unary(UU)(b"x", timeout=0.1)


def test_a_closed_channel_says_so() -> None:
    channel = mesh.blocking.connect(SERVICE, endpoints=["127.0.0.1:1"])
    channel.close()
    channel.close()
    with pytest.raises(ValueError, match="closed"):
        channel.unary_unary(UU)(b"x")


def test_a_forked_child_is_told_to_connect_anew(channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(RuntimeError, match=r"call mesh\.blocking\.connect in the child"):
        channel.unary_unary(UU)(b"x")
    monkeypatch.undo()
