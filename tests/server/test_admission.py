"""A server with more calls than it can do: whom it lets in, what it tells the others, and what becomes of its pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.resilience.hops import PRIORITY
from mesh.server import refusal_of
from support.echo import EchoRequest, EchoResponse, EchoServicer
from support.fleet import until
from support.serving import QUICK, echo, error_of


class Held(EchoServicer):
    """Holds every unary call until it is let go."""

    def __init__(self) -> None:
        super().__init__("held")
        self.go = asyncio.Event()

    async def Unary(self, request: Any, context: Any) -> Any:
        self.calls += 1
        await self.go.wait()
        return EchoResponse(text=request.text)


@asynccontextmanager
async def full(room: int) -> AsyncIterator[tuple[Any, grpc.aio.Channel, Held, list[Any]]]:
    """Give a server whose room is taken, and the calls that took it."""
    servicer = Held()
    settings = replace(QUICK, concurrency_min=room, concurrency_max=room)
    async with echo(settings, servicer=servicer) as (stub, channel):
        taken = [stub.Unary(EchoRequest(), timeout=30) for _ in range(room)]
        await until(lambda: servicer.calls == room)
        yield stub, channel, servicer, taken
        servicer.go.set()
        await asyncio.gather(*taken)


def test_a_call_too_many_is_refused_soon_and_told_when_to_come_again() -> None:
    async def story() -> None:
        async with full(8) as (stub, _, servicer, _):
            error = await error_of(stub.Unary(EchoRequest(), timeout=30))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            refusal = refusal_of(error)
            assert refusal is not None
            assert refusal.reason == "OVERLOADED"
            again = error_details_pb2.RetryInfo()
            assert refusal.details[0].Unpack(again)
            assert again.retry_delay.seconds == 1
            assert servicer.calls == 8

    asyncio.run(story())


def test_a_queued_call_is_let_in_when_another_ends() -> None:
    async def story() -> None:
        async with full(8) as (stub, _, servicer, taken):
            queued = stub.Unary(EchoRequest(text="next"), timeout=30, metadata=((PRIORITY, "critical"),))
            taken.pop().cancel()
            # Either it came after the room was free, or it waited for it; a refusal would be an error.
            await until(lambda: servicer.calls == 9)
            servicer.go.set()
            assert (await queued).text == "next"

    asyncio.run(story())


def test_sheddable_calls_leave_the_last_quarter_to_the_others() -> None:
    async def story() -> None:
        servicer = Held()
        settings = replace(QUICK, concurrency_min=8, concurrency_max=8)
        async with echo(settings, servicer=servicer) as (stub, _):
            taken = [stub.Unary(EchoRequest(), timeout=30) for _ in range(6)]
            await until(lambda: servicer.calls == 6)
            shed = await error_of(stub.Unary(EchoRequest(), metadata=((PRIORITY, "sheddable"),)))
            assert shed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            taken.append(stub.Unary(EchoRequest(), timeout=30))
            await until(lambda: servicer.calls == 7)
            servicer.go.set()
            await asyncio.gather(*taken)

    asyncio.run(story())


def test_health_and_streams_get_in_when_nobody_else_does() -> None:
    async def story() -> None:
        async with full(2) as (stub, channel, _, _):
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            assert [r.text async for r in stub.ServerStream(EchoRequest(text="a", count=1))] == ["a"]

    asyncio.run(story())


def test_every_call_gives_its_place_back_however_it_ends() -> None:
    async def story() -> None:
        settings = replace(QUICK, concurrency_min=4, concurrency_max=4)
        async with echo(settings) as (stub, _):
            for _ in range(10):
                calls = [
                    stub.Unary(EchoRequest(sleep=10), timeout=0.02),
                    stub.Unary(EchoRequest(fail="NOT_FOUND")),
                    stub.Unary(EchoRequest(fail="RAISE")),
                    stub.Unary(EchoRequest(sleep=10)),
                    *(stub.Unary(EchoRequest(sleep=10), timeout=0.005) for _ in range(4)),
                ]
                await asyncio.wait([asyncio.ensure_future(error_of(c)) for c in calls[:3] + calls[4:]])
                calls[3].cancel()
            answers = await asyncio.gather(*(stub.Unary(EchoRequest(text="free")) for _ in range(2)))
            assert [answer.text for answer in answers] == ["free", "free"]

    asyncio.run(story())


def test_without_a_limit_everybody_gets_in() -> None:
    async def story() -> None:
        servicer = Held()
        async with echo(replace(QUICK, concurrency_max=0), servicer=servicer) as (stub, _):
            calls = [stub.Unary(EchoRequest(), timeout=30) for _ in range(300)]
            await until(lambda: servicer.calls == 300)
            servicer.go.set()
            await asyncio.gather(*calls)

    asyncio.run(story())


async def reasons(*calls: Any) -> list[str]:
    """Return why calls were refused, "" for those that were not, or not by the server."""
    ends = await asyncio.gather(*calls, return_exceptions=True)
    found = [refusal_of(end) if isinstance(end, grpc.RpcError) else None for end in ends]
    return [refusal.reason if refusal is not None else "" for refusal in found]


def test_a_healthy_server_refuses_no_quick_call_because_others_were_slow() -> None:
    async def story() -> None:
        async with echo() as (stub, _):
            await asyncio.gather(*(stub.Unary(EchoRequest(sleep=1.0), timeout=10) for _ in range(12)))
            quick = await reasons(*(stub.Unary(EchoRequest(), timeout=0.4) for _ in range(30)))
            assert "NO_TIME_LEFT" not in quick

    asyncio.run(story())


def test_a_busy_server_begins_no_call_in_vain_and_tries_now_and_then_whether_it_would_be() -> None:
    async def story() -> None:
        servicer = EchoServicer("busy")
        async with echo(replace(QUICK, concurrency_min=8, concurrency_max=8), servicer=servicer) as (stub, _):
            await asyncio.gather(*(stub.Unary(EchoRequest(sleep=1.0), timeout=10) for _ in range(2)))
            held = [stub.Unary(EchoRequest(sleep=30), timeout=60) for _ in range(6)]
            await until(lambda: servicer.calls == 8)
            refusals = await reasons(*(stub.Unary(EchoRequest(sleep=1.0), timeout=0.4) for _ in range(3)))
            assert refusals.count("NO_TIME_LEFT") == 2
            assert servicer.calls == 9
            await stub.Unary(EchoRequest(text="one that is quick"), timeout=10)
            assert "NO_TIME_LEFT" not in await reasons(stub.Unary(EchoRequest(), timeout=0.4))
            for call in held:
                call.cancel()

    asyncio.run(story())


TAKES = 0.200
KNEE = 4 / TAKES


class Pooled(EchoServicer):
    """Needs one of a few connections for a while per call, as a service does that asks a database."""

    def __init__(self) -> None:
        super().__init__("pooled")
        self._pool = asyncio.Semaphore(4)

    async def Unary(self, request: Any, context: Any) -> Any:
        async with self._pool:
            await asyncio.sleep(TAKES)
        return EchoResponse(text=request.text)


@dataclass
class Answer:
    at: float
    took: float
    code: str


async def drive(stub: Any, rate: float, seconds: float) -> list[Answer]:
    """Call at a steady rate, whatever becomes of the calls before, each with two seconds to live."""
    begin, answers = time.monotonic(), list[Answer]()

    async def one() -> None:
        came, code = time.monotonic(), "OK"
        try:
            await stub.Unary(EchoRequest(), timeout=2.0)
        except grpc.aio.AioRpcError as e:
            code = e.code().name
        answers.append(Answer(came - begin, time.monotonic() - came, code))

    tasks = []
    for number in range(int(rate * seconds)):
        early = begin + number / rate - time.monotonic()
        if early > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return answers


async def peak(stub: Any, seconds: float) -> float:
    """Return the answers a second of twice as many callers as there are connections, each waiting for its answers."""
    end, answers = time.monotonic() + seconds, 0

    async def caller() -> None:
        nonlocal answers
        while time.monotonic() < end:
            await stub.Unary(EchoRequest(), timeout=10)
            answers += 1

    await asyncio.gather(*(caller() for _ in range(8)))
    return answers / seconds


def codes(answers: list[Answer], since: float = 0.0) -> set[str]:
    return {answer.code for answer in answers if answer.at >= since}


@pytest.mark.alone
def test_three_times_the_load_costs_a_fifth_of_the_goodput_at_most_and_refusals_are_quick() -> None:
    async def story() -> None:
        async with echo(replace(QUICK, concurrency_min=8), servicer=Pooled()) as (stub, _):
            before, healthy = await peak(stub, 2), await drive(stub, KNEE / 2, 2)
            during = await drive(stub, KNEE * 3, 10)
            after, recovered = await peak(stub, 2), await drive(stub, KNEE / 2, 2)
        good = sorted(a.took for a in during if a.code == "OK")
        refused = sorted(a.took for a in during if a.code == "RESOURCE_EXHAUSTED")
        assert (codes(healthy), codes(recovered, since=1.0)) == ({"OK"}, {"OK"})
        # What the machine can do changes with what else it does: compared with the same server before and after.
        assert len(good) / 10 >= 0.8 * min(before, after)
        assert good[len(good) // 2] < 6 * TAKES
        assert refused[len(refused) // 2] < TAKES

    asyncio.run(story())


@pytest.mark.alone
def test_a_service_whose_calls_all_run_out_of_time_answers_again_though_nobody_set_a_limit_for_it() -> None:
    """A hundred calls at once, the lowest limit by default, take five seconds here, and none of them has so long."""

    async def story() -> None:
        async with echo(QUICK, servicer=Pooled()) as (stub, _):
            before = await peak(stub, 2)
            during = await drive(stub, KNEE * 3, 16)
        good = sum(answer.code == "OK" and answer.at >= 10 for answer in during)
        assert good / 6 >= 0.7 * before

    asyncio.run(story())
