"""Retry and breaker on plain channels, asyncio and blocking."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc import aio

import mesh
from mesh.policy import BreakerPolicy, MethodPolicy
from support.fleet import IDEMPOTENT, US, UU, Host, echo, refuse, slow
from support.still import Clock


class Flaky:
    """Refuses so many times, then answers."""

    def __init__(self, failures: int, code: str = "UNAVAILABLE") -> None:
        self.left = failures
        self._refuse = refuse(code)

    async def __call__(self, message: bytes, context: Any) -> bytes:
        if self.left > 0:
            self.left -= 1
            return await self._refuse(message, context)
        return message


@pytest.fixture
def host() -> Iterator[Host]:
    """A server on a loop of its own thread, so that blocking clients can be tested."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = Host()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def aio_call(host: Host, interceptors: Any, path: str = UU) -> Any:
    options = [("grpc.enable_retries", 0)]
    async with aio.insecure_channel(host.address, options=options, interceptors=interceptors) as channel:
        if path == US:
            return [m async for m in channel.unary_stream(US)(b"x", timeout=5)]
        return await channel.unary_unary(UU)(b"x", timeout=5)


def blocking_call(host: Host, interceptors: Any, path: str = UU) -> Any:
    with grpc.insecure_channel(host.address, options=[("grpc.enable_retries", 0)]) as plain:
        channel = grpc.intercept_channel(plain, *interceptors)
        if path == US:
            return list(channel.unary_stream(US)(b"x", timeout=5))
        return channel.unary_unary(UU)(b"x", timeout=5)


@pytest.mark.parametrize("path", [UU, US])
def test_aio_retries_until_it_works(host: Host, path: str) -> None:
    retry = mesh.RetryInterceptor(IDEMPOTENT)
    host.answer = Flaky(2)
    answer = asyncio.run(aio_call(host, [retry, retry.streams], path))
    assert answer == (b"x" if path == UU else [b"x0", b"x1", b"x2"])
    assert [m.get("grpc-previous-rpc-attempts") for m in host.metadata] == [None, "1", "2"]


@pytest.mark.parametrize("path", [UU, US])
def test_blocking_retries_until_it_works(host: Host, path: str) -> None:
    host.answer = Flaky(2)
    answer = blocking_call(host, [mesh.blocking.RetryInterceptor(IDEMPOTENT)], path)
    assert answer == (b"x" if path == UU else [b"x0", b"x1", b"x2"])
    assert [m.get("grpc-previous-rpc-attempts") for m in host.metadata] == [None, "1", "2"]


class Late:
    """Takes so many seconds for its first answer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __call__(self, message: bytes, context: Any) -> bytes:
        seconds, self._seconds = self._seconds, 0.0
        await asyncio.sleep(seconds)
        return message


def limited(seconds: float, *, idempotent: bool) -> dict[str, MethodPolicy]:
    policy = MethodPolicy(idempotent=idempotent, retry=IDEMPOTENT[UU].retry._replace(attempt_timeout=seconds))
    return {UU: policy, US: policy}


def test_an_attempt_that_has_a_time_of_its_own_is_made_again_when_that_is_over(host: Host) -> None:
    host.answer = Late(60)
    assert asyncio.run(aio_call(host, [mesh.RetryInterceptor(limited(0.2, idempotent=True))])) == b"x"
    assert host.calls == 2
    host.answer = Late(60)
    assert blocking_call(host, [mesh.blocking.RetryInterceptor(limited(0.2, idempotent=True))]) == b"x"
    assert host.calls == 4


@pytest.mark.parametrize(("path", "idempotent"), [(UU, False), (US, True)], ids=["not to be repeated", "a stream"])
def test_an_attempt_that_cannot_be_made_again_for_its_time_has_that_of_its_call(
    host: Host, path: str, idempotent: bool
) -> None:
    retry, twin = (
        r(limited(0.1, idempotent=idempotent)) for r in (mesh.RetryInterceptor, mesh.blocking.RetryInterceptor)
    )
    host.answer = Late(0.3)
    assert asyncio.run(aio_call(host, [retry, retry.streams], path))
    host.answer = Late(0.3)
    assert blocking_call(host, [twin], path)
    assert host.calls == 2


@pytest.mark.parametrize(("policies", "calls"), [(IDEMPOTENT, 4), ({UU: MethodPolicy()}, 1)])
def test_the_last_error_is_what_the_caller_sees(host: Host, policies: Any, calls: int) -> None:
    host.answer = refuse("UNAVAILABLE", "down")
    with pytest.raises(aio.AioRpcError, match="down"):
        asyncio.run(aio_call(host, [mesh.RetryInterceptor(policies)]))
    assert host.calls == calls
    with pytest.raises(grpc.RpcError, match="down"):
        blocking_call(host, [mesh.blocking.RetryInterceptor(policies)])
    assert host.calls == 2 * calls


def test_what_is_no_fault_is_not_retried(host: Host) -> None:
    host.answer = refuse("NOT_FOUND")
    with pytest.raises(aio.AioRpcError):
        asyncio.run(aio_call(host, [mesh.RetryInterceptor(IDEMPOTENT)]))
    with pytest.raises(grpc.RpcError):
        blocking_call(host, [mesh.blocking.RetryInterceptor(IDEMPOTENT)])
    assert host.calls == 2


@pytest.mark.parametrize("face", ["aio", "blocking"])
def test_a_breaker_opens_refuses_and_recovers(host: Host, face: str) -> None:
    clock, policy = Clock(), BreakerPolicy(consecutive_failures=2, open_for=30.0, half_open_permits=1)
    one: Any = mesh if face == "aio" else mesh.blocking
    breaker = one.BreakerInterceptor(policy, clock=clock)

    def call() -> Any:
        return asyncio.run(aio_call(host, [breaker])) if face == "aio" else blocking_call(host, [breaker])

    host.answer = refuse("INTERNAL")
    for _ in range(4):
        with pytest.raises(grpc.RpcError) as raised:
            call()
    assert host.calls == 2
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "breaker is open" in str(raised.value.details())
    clock.now, host.answer = 40.0, echo
    assert call() == b"x"
    assert breaker.breaker.is_closed


def test_retry_above_breaker_goes_on_only_while_the_breaker_lets_it(host: Host) -> None:
    host.answer = refuse("UNAVAILABLE")
    retry, breaker = mesh.RetryInterceptor(IDEMPOTENT), mesh.BreakerInterceptor(BreakerPolicy(consecutive_failures=2))
    with pytest.raises(aio.AioRpcError, match="breaker is open"):
        asyncio.run(aio_call(host, [retry, breaker]))
    assert host.calls == 2
    again = mesh.blocking.RetryInterceptor(IDEMPOTENT)
    with pytest.raises(grpc.RpcError, match="breaker is open"):
        blocking_call(host, [again, mesh.blocking.BreakerInterceptor(BreakerPolicy(consecutive_failures=2))])
    assert host.calls == 4


def test_a_stream_through_the_breaker_counts(host: Host) -> None:
    breaker = mesh.BreakerInterceptor(BreakerPolicy(consecutive_failures=1))
    host.answer = refuse("INTERNAL")
    with pytest.raises(aio.AioRpcError):
        asyncio.run(aio_call(host, [breaker.streams], US))
    assert not breaker.breaker.is_closed


@pytest.mark.parametrize(("timeout", "closed"), [(0.1, True), (0.6, False)])
def test_a_deadline_of_less_than_half_a_second_proves_nothing(host: Host, timeout: float, closed: bool) -> None:
    policy = BreakerPolicy(consecutive_failures=1)
    breaker, twin = mesh.BreakerInterceptor(policy), mesh.blocking.BreakerInterceptor(policy)
    host.answer = slow(60)

    async def story() -> None:
        async with aio.insecure_channel(host.address, interceptors=[breaker]) as channel:
            await channel.unary_unary(UU)(b"x", timeout=timeout)

    with pytest.raises(aio.AioRpcError, match="Deadline"):
        asyncio.run(story())
    assert breaker.breaker.is_closed is closed
    with grpc.insecure_channel(host.address) as plain, pytest.raises(grpc.RpcError, match="Deadline"):
        grpc.intercept_channel(plain, twin).unary_unary(UU)(b"x", timeout=timeout)
    assert twin.breaker.is_closed is closed
