"""What a server does with what a call hands on: deadline and entries for its handler's calls, the mark upstream."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import mesh
from mesh.errors import Refusal
from mesh.resilience.hops import ATTEMPTS_LEFT, CURRENT, Hop
from mesh.resilience.retry import PUSHBACK, Failure, Stop
from mesh.server import refusal_of
from mesh.wallclock import CLOCK
from support.echo import SERVICE, EchoRequest, EchoResponse, EchoServicer, EchoServiceStub
from support.serving import echo, echo_server, error_of


class Seeing(EchoServicer):
    """Keeps the hop that each handler saw, then does as `end` says, on behalf of which a call has failed for good."""

    def __init__(self, end: str = "") -> None:
        super().__init__("seeing")
        self.hops: list[Hop] = []
        self.end = end

    async def Unary(self, request: Any, context: Any) -> Any:
        hop = CURRENT.get()
        assert hop is not None
        self.hops.append(hop)
        if self.end:
            hop.failed(Failure("UNAVAILABLE"), Stop.BUDGET)
        if self.end == "raise":
            raise RuntimeError
        if self.end == "refuse":
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "No.", "NO", "test")
        if self.end == "pass on":
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "")
        if self.end == "abort":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no", (("mine", "kept"),))
        if self.end == "set_code":
            context.set_trailing_metadata((("mine", "kept"),))
            context.set_code(grpc.StatusCode.UNAVAILABLE)
        return EchoResponse(remaining=hop.deadline - CLOCK.monotonic())


def test_a_handler_sees_its_callers_deadline_and_what_is_left_of_the_attempts() -> None:
    async def story() -> None:
        servicer = Seeing()
        async with echo(servicer=servicer) as (stub, _):
            answer = await stub.Unary(EchoRequest(), timeout=3.0, metadata=((ATTEMPTS_LEFT, "1"),))
            # gRPC writes timeouts on the wire rounded up, by up to a hundredth; the answer's 20 ms are kept of that.
            assert 2.0 < answer.remaining <= 3.0 * 1.01 - 0.02
            await stub.Unary(EchoRequest())
            assert CURRENT.get() is None
        assert [hop.is_spent for hop in servicer.hops] == [False, False]

    asyncio.run(story())


@pytest.mark.parametrize("end", ["raise", "refuse", "pass on", "abort", "set_code"])
def test_a_failed_answer_is_marked_if_a_call_on_its_behalf_was_repeated_in_vain(end: str) -> None:
    async def story() -> None:
        async with echo(servicer=Seeing(end)) as (stub, _):
            error = await error_of(stub.Unary(EchoRequest()))
            trailing = dict(error.trailing_metadata() or ())
            assert (trailing[PUSHBACK], trailing["x-envoy-ratelimited"]) == ("-1", "true")
            assert trailing.get("mine", "kept") == "kept"
            assert ("mine" in trailing) is (end in ("abort", "set_code"))

    asyncio.run(story())


def test_an_answer_is_not_marked_because_a_call_on_its_behalf_failed() -> None:
    async def story() -> None:
        async with echo(servicer=Seeing("recover")) as (stub, _):
            call = stub.Unary(EchoRequest())
            await call
            assert PUSHBACK not in dict(await call.trailing_metadata())

    asyncio.run(story())


def test_a_final_refusal_is_marked() -> None:
    class Final(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "No.", "NO", "test", is_final=True)

    async def story() -> None:
        async with echo(servicer=Final()) as (stub, _):
            error = await error_of(stub.Unary(EchoRequest()))
            assert dict(error.trailing_metadata() or ())[PUSHBACK] == "-1"

    asyncio.run(story())


def test_other_failures_are_not_marked() -> None:
    async def story() -> None:
        async with echo() as (stub, _):
            error = await error_of(stub.Unary(EchoRequest(fail="UNAVAILABLE")))
            assert PUSHBACK not in dict(error.trailing_metadata() or ())

    asyncio.run(story())


@pytest.mark.parametrize(
    ("code", "answered", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE, "NEED_UNMET"),
        (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE, "NEED_UNMET"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.DEADLINE_EXCEEDED, "TOO_SLOW"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.RESOURCE_EXHAUSTED, "NEED_FULL"),
        (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL, "UNEXPECTED_ERROR"),
    ],
)
def test_a_failure_below_that_a_handler_does_not_handle_is_told_as_what_it_is(
    code: grpc.StatusCode, answered: grpc.StatusCode, reason: str
) -> None:
    class Careless(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "secret of the one below")

    async def story() -> None:
        async with echo(servicer=Careless()) as (stub, _):
            error = await error_of(stub.Unary(EchoRequest()))
            refusal = refusal_of(error)
            assert refusal is not None
            assert (error.code(), refusal.reason) == (answered, reason)
            assert "secret" not in f"{error.details()} {error.trailing_metadata()}"

    asyncio.run(story())


def test_a_leaf_that_sheds_is_told_as_such_upstream_and_opens_nobodys_breaker() -> None:
    class Full(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            again = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=7))
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "secret", "QUOTA", "leaf", details=[again])

    class Middle(EchoServicer):
        stub: Any

        async def Unary(self, request: Any, context: Any) -> Any:
            return await self.stub.Unary(request)

    async def story() -> None:
        middle = Middle()
        async with echo_server(servicer=Full()) as leaf, echo_server(servicer=middle) as server:
            down, up = ([str(one.endpoint)] for one in (leaf, server))
            async with mesh.connect(SERVICE, endpoints=down) as below, mesh.connect(SERVICE, endpoints=up) as channel:
                middle.stub = EchoServiceStub(below)
                for _ in range(20):
                    error = await error_of(EchoServiceStub(channel).Unary(EchoRequest(), timeout=5))
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                refusal, again = refusal_of(error), error_details_pb2.RetryInfo()
                assert refusal is not None
                assert refusal.details[0].Unpack(again)
                assert again.retry_delay.seconds == 7
                assert "secret" not in f"{error.details()} {error.trailing_metadata()}"

    asyncio.run(story())
