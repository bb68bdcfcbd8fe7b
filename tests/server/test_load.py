"""Load reports: what the meter says, that it goes with each answer, and that clients go by it."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import grpc
import pytest
from xds.data.orca.v3 import orca_load_report_pb2

import mesh
from grpcmesh.v1 import load_pb2
from mesh.balancing import reported
from mesh.client.balance import LOAD_REPORT
from mesh.memory import MemoryStore
from mesh.server import Server
from mesh.server.load import ENTRIES, LoadMeter
from mesh.settings import Settings
from support.echo import EchoRequest
from support.fleet import until
from support.loaded import SERVICE, AnswerRequest, LoadedServicer, LoadedServiceStub
from support.serving import QUICK, echo, error_of, plain_channel


class Time:
    """A clock and a CPU account that tests move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu = 5.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a meter does not sleep")


def told(meter: LoadMeter) -> load_pb2.OrcaLoadReport:
    (_, value), (_, again) = meter.tell()
    assert value == again
    return load_pb2.OrcaLoadReport.FromString(value)


def test_calls_failures_and_cpu_are_told_per_second() -> None:
    async def story() -> None:
        time = Time()
        meter = LoadMeter(time, cpu=lambda: time.cpu)
        assert meter.tell() == (), "nothing is known yet"
        for number in range(50):
            meter.answered("INTERNAL" if number % 10 == 0 else "OK")
        time.now, time.cpu = 100.5, 5.2
        report = told(meter)
        assert report.rps_fractional == pytest.approx(100)
        assert report.eps == pytest.approx(10)
        assert report.cpu_utilization == report.application_utilization == pytest.approx(0.4)

    asyncio.run(story())


def test_numbers_are_smoothed_and_made_four_times_a_second_at_most() -> None:
    async def story() -> None:
        time = Time()
        meter = LoadMeter(time, cpu=lambda: time.cpu)
        time.now, time.cpu = 101.0, 5.1
        first = told(meter)
        time.now, time.cpu = 101.2, 6.0
        assert told(meter) == first
        time.now = 101.5
        assert 0.1 < told(meter).cpu_utilization < 0.5

    asyncio.run(story())


def test_a_busy_server_tells_with_one_answer_in_eight_and_a_quiet_one_with_all() -> None:
    async def story() -> None:
        time = Time()
        meter = LoadMeter(time, cpu=lambda: time.cpu)
        time.now = 101.0

        def telling(calls: int) -> int:
            told = 0
            for _ in range(calls):
                told += bool(meter.tell())
                meter.answered("OK")
            return told

        assert telling(8) == 8
        assert telling(800) == pytest.approx(100, abs=3)
        time.now = 102.0
        assert telling(8) == 8

    asyncio.run(story())


def test_a_late_event_loop_is_a_load_without_cpu() -> None:
    async def story() -> None:
        time = Time()
        meter = LoadMeter(time, cpu=lambda: time.cpu)
        time.now = 101.0
        assert told(meter).application_utilization == pytest.approx(0.001)
        await asyncio.sleep(0.02)
        time.now = 101.25  # the timer, due at 101.05, rings 0.2 s late
        await until(lambda: meter._lateness)
        assert told(meter).application_utilization == pytest.approx(2.0)

    asyncio.run(story())


def test_reports_are_read_by_those_who_know_ORCA_by_its_own_name() -> None:
    ours = load_pb2.OrcaLoadReport(cpu_utilization=0.25, rps_fractional=120, eps=3, application_utilization=0.5)
    theirs = orca_load_report_pb2.OrcaLoadReport.FromString(ours.SerializeToString())
    assert (theirs.cpu_utilization, theirs.rps_fractional, theirs.eps) == (0.25, 120, 3)
    assert theirs.application_utilization == 0.5


def test_a_report_goes_with_answers_and_refusals_beside_the_handlers_own_entries() -> None:
    async def story() -> None:
        server = Server(LoadedServicer(), settings=QUICK, store=MemoryStore())
        async with server, plain_channel(server) as channel:
            stub = LoadedServiceStub(channel)
            await stub.Answer(AnswerRequest())
            await asyncio.sleep(0.3)
            call = stub.Answer(AnswerRequest())
            await call
            entries = dict(await call.trailing_metadata())
            assert entries["x-own"] == "kept"
            assert load_pb2.OrcaLoadReport.FromString(entries[LOAD_REPORT]).rps_fractional > 0
            error = await error_of(stub.Answer(AnswerRequest(fail="NOT_FOUND")))
            assert LOAD_REPORT in dict(error.trailing_metadata() or ())

    asyncio.run(story())


def test_services_that_do_not_ask_for_reports_send_none() -> None:
    async def story() -> None:
        async with echo() as (stub, _):
            await stub.Unary(EchoRequest())
            await asyncio.sleep(0.3)
            call = stub.Unary(EchoRequest())
            await call
            assert LOAD_REPORT not in dict(await call.trailing_metadata())

    asyncio.run(story())


async def two_servers(stack: AsyncExitStack) -> list[tuple[Server, LoadedServicer]]:
    """Start two that report utilisations of 0.2 and 0.8 at the same rate of calls."""
    servers = []
    for utilization in (0.2, 0.8):
        servicer = LoadedServicer()
        server = Server(servicer, settings=Settings(drain=1.0, settle=0.0), store=MemoryStore())
        report = load_pb2.OrcaLoadReport(rps_fractional=100, application_utilization=utilization)
        # A server cannot be made busy to order.
        server._router._meter.tell = partial(tuple, [(entry, report.SerializeToString()) for entry in ENTRIES])
        await stack.enter_async_context(server)
        servers.append((server, servicer))
    return servers


def test_a_mesh_client_goes_by_the_reports_as_its_contract_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reported, "BLACKOUT", 0.0)

    async def story() -> None:
        async with AsyncExitStack() as stack:
            servers = await two_servers(stack)
            endpoints = [str(server.endpoint) for server, _ in servers]
            channel = await stack.enter_async_context(mesh.connect(SERVICE, endpoints=endpoints))
            stub = LoadedServiceStub(channel)
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            for _ in range(20):
                await stub.Answer(AnswerRequest())
            await asyncio.sleep(0.3)  # weights are looked at four times a second
            before = [servicer.calls for _, servicer in servers]
            for _ in range(200):
                await stub.Answer(AnswerRequest())
            gained = [servicer.calls - then for (_, servicer), then in zip(servers, before, strict=True)]
            assert gained[0] in (159, 160, 161)

    asyncio.run(story())


def test_a_grpc_client_of_any_language_goes_by_them_too() -> None:
    config: dict[str, Any] = {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s"}
    options = [("grpc.service_config", json.dumps({"loadBalancingConfig": [{"weighted_round_robin": config}]}))]

    async def story() -> None:
        async with AsyncExitStack() as stack:
            servers = await two_servers(stack)
            target = "ipv4:" + ",".join(str(server.endpoint) for server, _ in servers)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
            stub = LoadedServiceStub(channel)

            async def shares() -> float:
                before = [servicer.calls for _, servicer in servers]
                for _ in range(100):
                    await stub.Answer(AnswerRequest(), wait_for_ready=True, timeout=5)
                gained = [servicer.calls - then for (_, servicer), then in zip(servers, before, strict=True)]
                return gained[0] / 100

            for _ in range(20):
                if abs(await shares() - 0.8) < 0.03:
                    return
            raise AssertionError("it never came to four of five")

    asyncio.run(story())
