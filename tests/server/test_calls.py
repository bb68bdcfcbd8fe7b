"""What a call meets: parsing, deadlines, refusals, mistakes, limits, and the account of all of it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from prometheus_client import REGISTRY

from mesh.errors import Refusal, SettingsError
from mesh.server import Server, refusal_of
from support.echo import SERVICE, EchoRequest, EchoResponse, EchoServicer, echo_pb2_grpc
from support.serving import QUICK, echo, echo_server, error_of, plain_channel

PATHS = {name: f"/{SERVICE}/{name}" for name in ("Unary", "ServerStream", "ClientStream", "Bidi")}


def _nested(depth: int) -> bytes:
    message = b""
    for _ in range(depth):
        size, length = b"", len(message)
        while length > 127:
            size += bytes([length & 127 | 128])
            length >>= 7
        message = b"\x2a" + size + bytes([length]) + message
    return message


UNREADABLE = {
    "garbage": b"\xff\xff\xff\xff",
    "truncated": EchoRequest(text="hello").SerializeToString()[:-2],
    "invalid UTF-8": b"\x0a\x02\xc3\x28",
    "nested deeply": _nested(5000),
    "wrong wire type": b"\x0b\x0b\x0b",
}


async def _raw(channel: grpc.aio.Channel, kind: str, request: bytes) -> grpc.aio.AioRpcError:
    if kind == "Unary":
        return await error_of(channel.unary_unary(PATHS[kind])(request))
    if kind == "ServerStream":
        return await error_of(channel.unary_stream(PATHS[kind])(request))
    if kind == "ClientStream":
        return await error_of(channel.stream_unary(PATHS[kind])(iter([request])))
    return await error_of(channel.stream_stream(PATHS[kind])(iter([request])))


def _count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_all_four_kinds_of_call_are_answered() -> None:
    async def story() -> None:
        async with echo() as (stub, _):
            assert (await stub.Unary(EchoRequest(text="a"))).text == "a"
            assert [r.text async for r in stub.ServerStream(EchoRequest(text="b", count=3))] == ["b"] * 3
            assert (await stub.ClientStream(iter([EchoRequest(text="c"), EchoRequest(text="d")]))).text == "c d"
            assert [r.text async for r in stub.Bidi(iter([EchoRequest(text=t) for t in "ef"]))] == ["e", "f"]

    asyncio.run(story())


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_request_that_does_not_parse_is_an_invalid_argument_with_a_fixed_text(what: str) -> None:
    async def story() -> None:
        async with echo() as (stub, channel):
            for kind in PATHS:
                error = await _raw(channel, kind, UNREADABLE[what])
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, kind
                assert error.details() == "The request is not a message of this method."
            assert (await stub.Unary(EchoRequest(text="still here"))).text == "still here"

    asyncio.run(story())


def test_a_handler_that_reads_by_hand_meets_the_same_parser() -> None:
    class Reader(EchoServicer):
        async def Bidi(self, request_iterator: Any, context: Any) -> None:
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(EchoResponse(text=request.text))

    async def story() -> None:
        async with echo(servicer=Reader()) as (stub, channel):
            assert [r.text async for r in stub.Bidi(iter([EchoRequest(text="a")]))] == ["a"]
            assert (await _raw(channel, "Bidi", b"\xff")).code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(story())


def test_a_message_over_one_mebibyte_is_refused_and_one_below_is_not() -> None:
    async def story() -> None:
        async with echo() as (stub, channel):
            error = await _raw(channel, "Unary", b"x" * (1024 * 1024 + 1))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert len((await stub.Unary(EchoRequest(text="x" * 1_000_000))).text) == 1_000_000

    asyncio.run(story())


@pytest.mark.parametrize("name", ["Unary", "ServerStream"])
def test_a_refusal_arrives_with_its_code_sentence_and_facts(name: str) -> None:
    async def story() -> None:
        async with echo() as (stub, _):
            error = await error_of(getattr(stub, name)(EchoRequest(text="x", count=2, fail="NOT_FOUND")))
            refusal = refusal_of(error)
            assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "echo was asked to refuse")
            assert refusal is not None
            assert (refusal.reason, refusal.domain, refusal.facts) == ("ASKED_TO", "echo.v1", {"text": "x"})

    asyncio.run(story())


def test_further_details_of_a_refusal_arrive_too() -> None:
    class Strict(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            wrong = error_details_pb2.BadRequest.FieldViolation(field="text", description="is empty")
            details = [error_details_pb2.BadRequest(field_violations=[wrong])]
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "Give a text.", "EMPTY", "echo.v1", details=details)

    async def story() -> None:
        async with echo(servicer=Strict()) as (stub, _):
            refusal = refusal_of(await error_of(stub.Unary(EchoRequest())))
            assert refusal is not None
            found = error_details_pb2.BadRequest()
            assert refusal.details[0].Unpack(found)
            assert found.field_violations[0].field == "text"

    asyncio.run(story())


@pytest.mark.parametrize("name", ["Unary", "ServerStream"])
def test_an_unexpected_exception_tells_the_log_where_and_the_caller_nothing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with echo() as (stub, _):
            error = await error_of(getattr(stub, name)(EchoRequest(text="hunter2", count=1, fail="RAISE")))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert error.details() == "The server made a mistake; its log tells which."
            assert "hunter2" not in str(error.trailing_metadata())

    with caplog.at_level(logging.ERROR, logger="mesh.server"):
        asyncio.run(story())
    record = next(r for r in caplog.records if r.name == "mesh.server")
    assert record.getMessage() == f"{SERVICE}/{name} failed unexpectedly"
    assert record.exc_info is not None


def test_a_response_of_the_wrong_type_is_a_mistake_of_the_server() -> None:
    class Wrong(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            return None

    async def story() -> None:
        async with echo(servicer=Wrong()) as (stub, _):
            assert (await error_of(stub.Unary(EchoRequest()))).code() is grpc.StatusCode.INTERNAL

    asyncio.run(story())


def test_a_servicer_may_still_abort_or_set_a_code_as_plain_grpc_has_it() -> None:
    class Classic(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
            context.set_details("not now")

        async def ServerStream(self, request: Any, context: Any) -> Any:
            yield EchoResponse()
            await context.abort(grpc.StatusCode.DATA_LOSS, "gone")

    async def story() -> None:
        lost = {"service": SERVICE, "method": "ServerStream", "code": "DATA_LOSS"}
        before = _count("mesh_server_calls_total", **lost)
        async with echo(servicer=Classic()) as (stub, _):
            error = await error_of(stub.Unary(EchoRequest()))
            assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not now")
            assert (await error_of(stub.ServerStream(EchoRequest()))).code() is grpc.StatusCode.DATA_LOSS
        assert _count("mesh_server_calls_total", **lost) == before + 1

    asyncio.run(story())


@pytest.mark.parametrize(
    ("code", "name"),
    [(grpc.StatusCode.OK, "OK"), (0, "OK"), (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), (5, "NOT_FOUND")],
)
def test_a_code_that_is_set_counts_by_its_name_however_it_is_written_and_ok_is_no_error(code: Any, name: str) -> None:
    class Classic(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            context.set_code(code)
            return EchoResponse(text="here")

        async def ClientStream(self, requests: Any, context: Any) -> Any:
            return await self.Unary(None, context)

    async def story() -> None:
        labels = [{"service": SERVICE, "method": method, "code": name} for method in ("Unary", "ClientStream")]
        before = [_count("mesh_server_calls_total", **label) for label in labels]
        async with echo(servicer=Classic()) as (stub, _):
            for answer in (stub.Unary(EchoRequest()), stub.ClientStream(iter([EchoRequest()]))):
                if name == "OK":
                    assert (await answer).text == "here"
                else:
                    assert (await error_of(answer)).code().name == name
        assert [_count("mesh_server_calls_total", **label) for label in labels] == [count + 1 for count in before]

    asyncio.run(story())


def test_a_handler_sees_all_that_plain_grpc_shows_of_a_call() -> None:
    class Curious(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            seen = {
                name for name in dir(grpc.aio.ServicerContext) if not name.startswith("_") and hasattr(context, name)
            }
            assert ("asked", "yes") in context.invocation_metadata()
            assert context.peer().startswith("ipv4:127.0.0.1:")
            return EchoResponse(text=" ".join(sorted(seen)))

    async def story() -> None:
        async with echo(servicer=Curious()) as (stub, _):
            seen = (await stub.Unary(EchoRequest(), metadata=(("asked", "yes"),))).text.split()
        assert seen == [name for name in dir(grpc.aio.ServicerContext) if not name.startswith("_")]

    asyncio.run(story())


def test_the_time_of_each_answer_is_counted_where_prometheus_would() -> None:
    async def story() -> None:
        labels = {"service": SERVICE, "method": "Unary"}

        def told() -> list[float]:
            name = "mesh_server_call_seconds"
            return [_count(f"{name}_bucket", **labels, le=le) for le in ("0.025", "0.1", "+Inf")] + [
                _count(f"{name}_{what}", **labels) for what in ("count", "sum")
            ]

        before = told()
        async with echo() as (stub, _):
            await stub.Unary(EchoRequest(sleep=0.03))
        soon, later, always, count, seconds = (now - then for now, then in zip(told(), before, strict=True))
        assert (soon, always, count) == (0, 1, 1)
        assert seconds >= 0.03
        assert later == (seconds <= 0.1)

    asyncio.run(story())


def test_who_reads_the_metrics_of_a_server_at_work_finds_the_calls_of_a_moment_ago() -> None:
    async def story() -> None:
        labels = {"service": SERVICE, "method": "Unary", "code": "OK"}
        before = _count("mesh_server_calls_total", **labels)
        async with echo() as (stub, _):
            for _ in range(3):
                await stub.Unary(EchoRequest())
            async with asyncio.timeout(5):
                while _count("mesh_server_calls_total", **labels) != before + 3:
                    await asyncio.sleep(0.005)

    asyncio.run(story())


@pytest.mark.parametrize("path", ["/echo.v1.EchoService/Missing", "/echo.v1.EchoService/Nope", "/a.b.C/D", "/nonsense"])
def test_what_nobody_serves_is_unimplemented_at_once_even_as_a_stream_without_a_request(path: str) -> None:
    async def story() -> None:
        async with echo() as (_, channel):
            assert (await error_of(channel.unary_unary(path)(b""))).code() is grpc.StatusCode.UNIMPLEMENTED
            stream = channel.stream_stream(path)(timeout=5)
            assert (await error_of(stream)).code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(story())


def test_names_that_nobody_serves_share_one_label() -> None:
    async def story() -> None:
        labels = {"service": "unknown", "method": "unknown", "code": "UNIMPLEMENTED"}
        before = _count("mesh_server_calls_total", **labels)
        async with echo() as (_, channel):
            for number in range(20):
                await error_of(channel.unary_unary(f"/scan.v{number}.Service/Method{number}")(b""))
        assert _count("mesh_server_calls_total", **labels) == before + 20
        text = str([metric for metric in REGISTRY.collect() if metric.name.startswith("mesh_server")])
        assert "scan.v" not in text

    asyncio.run(story())


def test_without_a_deadline_the_contracts_default_holds_and_the_handler_sees_it() -> None:
    async def story() -> None:
        async with echo() as (stub, _):
            assert 9.0 < (await stub.Unary(EchoRequest())).remaining <= 10.0

    asyncio.run(story())


def test_a_deadline_of_years_is_capped() -> None:
    async def story() -> None:
        async with echo() as (stub, _):
            answer = await stub.Unary(EchoRequest(), timeout=10 * 365 * 86400.0)
            assert 3500 < answer.remaining <= 3600

    asyncio.run(story())


@pytest.mark.alone
def test_a_deadline_that_has_passed_starts_no_work() -> None:
    class Blocking(EchoServicer):
        async def Unary(self, request: Any, context: Any) -> Any:
            if request.text == "block":
                time.sleep(0.3)
            return await super().Unary(request, context)

    async def story() -> None:
        servicer = Blocking()
        async with echo(servicer=servicer) as (stub, _):
            await stub.Unary(EchoRequest(text="connect"))
            blocking = asyncio.ensure_future(stub.Unary(EchoRequest(text="block"), timeout=5))
            late = [stub.Unary(EchoRequest(text="late"), timeout=0.1) for _ in range(5)]
            late += [stub.Unary(EchoRequest(text="late"), timeout=timeout) for timeout in (0, -1)]
            for call in late:
                assert (await error_of(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await blocking
            await stub.Unary(EchoRequest(text="all before are done"))
        assert servicer.calls == 3

    asyncio.run(story())


@pytest.mark.alone
@pytest.mark.parametrize("name", ["Unary", "ServerStream"])
def test_a_handler_that_is_too_slow_is_cancelled_and_the_caller_told_in_time(name: str) -> None:
    async def story() -> None:
        servicer = EchoServicer()
        async with echo(servicer=servicer) as (stub, _):
            begun = time.monotonic()
            error = await error_of(getattr(stub, name)(EchoRequest(sleep=30, count=1), timeout=0.4))
            assert time.monotonic() - begun < 1.0
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # The server's own sentence, not the client's: it kept enough of the deadline to say it.
            assert error.details() == "The deadline passed before the answer was ready."
            assert servicer.cancelled == 1

    asyncio.run(story())


def test_a_caller_that_goes_away_cancels_the_handler_and_leaves_nothing_behind() -> None:
    async def story() -> None:
        servicer = EchoServicer()
        async with echo_server(servicer=servicer) as server, plain_channel(server) as channel:
            stub = echo_pb2_grpc.EchoServiceStub(channel)
            calls = [stub.Unary(EchoRequest(sleep=30), timeout=60) for _ in range(50)]
            async with asyncio.timeout(10):
                while servicer.calls < 50:
                    await asyncio.sleep(0.01)
                assert _count("mesh_server_in_flight", service=SERVICE) == 50
                for call in calls:
                    call.cancel()
                while servicer.cancelled < 50 or server.unfinished:
                    await asyncio.sleep(0.01)
        assert _count("mesh_server_in_flight", service=SERVICE) == 0

    asyncio.run(story())


def test_a_plain_function_is_refused_at_the_start_in_one_sentence() -> None:
    class Blocking(EchoServicer):
        def Unary(self, request: Any, context: Any) -> Any:
            return EchoResponse()

    with pytest.raises(SettingsError, match=r"Blocking\.Unary is a plain function: write `async def`"):
        Server(Blocking(), settings=QUICK)


def test_an_object_that_is_no_servicer_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match="object serves nothing"):
        Server(object(), settings=QUICK)
    with pytest.raises(SettingsError, match="served twice"):
        Server(EchoServicer(), EchoServicer(), settings=QUICK)
    with pytest.raises(SettingsError, match="at least one servicer"):
        Server(settings=QUICK)
