"""Leaving, in order and in time, as others see it."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, Instance, State
from mesh.memory import MemoryStore
from mesh.registry.record import decode, service_prefix
from mesh.settings import Settings
from support.echo import SERVICE, EchoRequest, EchoServiceStub
from support.etcd import Etcd
from support.ports import free_port
from support.service import EchoProcess
from support.serving import QUICK, echo_server, error_of, plain_channel

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def _prefix() -> str:
    return f"leaving-{uuid.uuid4().hex[:8]}"


def _store(etcd: Etcd) -> EtcdStore:
    return EtcdStore.from_settings(Settings(etcd=(Endpoint.parse(etcd.endpoint),)))


async def _registered(store: Any, prefix: str) -> list[Instance]:
    listing = await store.list(service_prefix(prefix, SERVICE))
    return [decode(key, entry.value, prefix) for key, entry in listing.entries.items()]


async def _until_registered(store: Any, prefix: str, count: int = 1) -> list[Instance]:
    async with asyncio.timeout(20):
        while len(found := await _registered(store, prefix)) != count:
            await asyncio.sleep(0.01)
        return found


async def _watch_key(store: Any, prefix: str, story: list[str]) -> None:
    listing = await store.list(service_prefix(prefix, SERVICE))
    async for changed in store.watch(service_prefix(prefix, SERVICE), listing.revision):
        for key, entry in changed.changes.items():
            story.append("gone" if entry is None else str(decode(key, entry.value, prefix).state))


async def _watch_health(channel: grpc.aio.Channel, story: list[str]) -> None:
    try:
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE)):
            story.append("SERVING" if answer.status == SERVING else "NOT_SERVING")
    except grpc.aio.AioRpcError as e:
        story.append(f"watch ended {e.code().name}")


def test_on_sigterm_it_drains_in_the_store_then_in_health_finishes_its_calls_and_goes(
    etcd: Etcd, tmp_path: Path
) -> None:
    async def story(service: EchoProcess, prefix: str) -> None:
        told: list[str] = []
        async with _store(etcd) as store, grpc.aio.insecure_channel(service.address) as channel:
            await _until_registered(store, prefix)
            stub = EchoServiceStub(channel)
            watchers = [asyncio.create_task(w) for w in (_watch_key(store, prefix, told), _watch_health(channel, told))]
            call = asyncio.ensure_future(stub.Unary(EchoRequest(text="in flight", sleep=1.2), timeout=10))
            async with asyncio.timeout(10):
                while told != ["SERVING"]:
                    await asyncio.sleep(0.01)
                await stub.Unary(EchoRequest(text="the one before has begun"), timeout=5)
                service.signal()
                while "NOT_SERVING" not in told:
                    await asyncio.sleep(0.001)
                assert [i.state for i in await _registered(store, prefix)] == [State.DRAINING]
                # Draining is no refusal: whoever has not heard of it yet is still answered.
                assert (await stub.Unary(EchoRequest(text="late"), timeout=5)).text == "late"
                assert (await call).text == "in flight"
                while "gone" not in told:
                    await asyncio.sleep(0.01)
            for watcher in watchers:
                watcher.cancel()
            # Two watches tell, so only the order within each is certain.
            assert [t for t in told if t in ("draining", "gone")] == ["draining", "gone"]
            assert [t for t in told if t not in ("draining", "gone")] == [
                "SERVING",
                "NOT_SERVING",
                "watch ended UNAVAILABLE",
            ]
            assert told[-1] == "gone"

    prefix = _prefix()
    with EchoProcess(tmp_path, MESH_ETCD=etcd.endpoint, MESH_PREFIX=prefix, MESH_SETTLE="0.4") as service:
        asyncio.run(story(service, prefix))
        assert service.exit_code(timeout=5) == 0


@pytest.mark.alone
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_stuck_handler_costs_drain_and_at_most_a_second_and_the_key_goes_first(
    etcd: Etcd, tmp_path: Path, stubborn: bool
) -> None:
    async def story(service: EchoProcess, prefix: str) -> float:
        async with _store(etcd) as store, grpc.aio.insecure_channel(service.address) as channel:
            await _until_registered(store, prefix)
            stub = EchoServiceStub(channel)
            stuck = stub.Unary(EchoRequest(sleep=60, stubborn=stubborn), timeout=120)
            await stub.Unary(EchoRequest(text="the one before has begun"), timeout=5)
            told = time.monotonic()
            service.signal()
            error = await error_of(stuck)
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            if not stubborn:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
            while service.process.poll() is None:
                await asyncio.sleep(0.01)
            took = time.monotonic() - told
            assert await _registered(store, prefix) == []
            return took

    prefix = _prefix()
    with EchoProcess(tmp_path, MESH_ETCD=etcd.endpoint, MESH_PREFIX=prefix, MESH_DRAIN="1") as service:
        assert asyncio.run(story(service, prefix)) < 2.0


@pytest.mark.alone
def test_a_handler_that_holds_the_whole_process_is_ended_by_force(tmp_path: Path) -> None:
    async def story(service: EchoProcess) -> None:
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub = EchoServiceStub(channel)
            await stub.Unary(EchoRequest(text="connect"), timeout=5)
            stuck = stub.Unary(EchoRequest(sleep=60, block=True), timeout=120)
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Unary(EchoRequest(text="nobody answers"), timeout=0.5)
            begun = time.monotonic()
            service.signal()
            assert (await error_of(stuck)).code() is grpc.StatusCode.UNAVAILABLE
            assert service.exit_code(timeout=5) == 70
            assert time.monotonic() - begun < 2.0
            assert service.records()[-1]["event.action"] == "ended-by-force"

    with EchoProcess(tmp_path, MESH_ETCD=f"127.0.0.1:{free_port()}", MESH_DRAIN="1") as service:
        asyncio.run(story(service))


def test_a_stream_that_never_ends_keeps_nobody_waiting(tmp_path: Path) -> None:
    """A health watch has no end of its own; its caller is told UNAVAILABLE, and the server is gone at once."""

    async def story(service: EchoProcess) -> None:
        told: list[str] = []
        async with grpc.aio.insecure_channel(service.address) as channel:
            watcher = asyncio.create_task(_watch_health(channel, told))
            async with asyncio.timeout(10):
                while told != ["SERVING"]:
                    await asyncio.sleep(0.01)
                service.signal()
                await watcher
            assert told == ["SERVING", "NOT_SERVING", "watch ended UNAVAILABLE"]

    with EchoProcess(tmp_path, MESH_ETCD=f"127.0.0.1:{free_port()}", MESH_DRAIN="60", MESH_SETTLE="0.2") as service:
        asyncio.run(story(service))
        assert service.exit_code(timeout=5) == 0


@pytest.mark.alone
def test_it_leaves_in_time_when_etcd_hangs(tmp_path: Path) -> None:
    with Etcd(tmp_path / "etcd") as own:
        settings = {"MESH_ETCD": own.endpoint, "MESH_DRAIN": "1", "MESH_SETTLE": "0"}
        with EchoProcess(tmp_path, **settings) as service:
            service.wait_for("registered")
            own.pause()
            begun = time.monotonic()
            service.signal()
            assert service.exit_code(timeout=5) == 0
            assert time.monotonic() - begun < 2.0
            own.resume()


@pytest.mark.alone
def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async def story(service: EchoProcess) -> None:
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub = EchoServiceStub(channel)
            stuck = stub.Unary(EchoRequest(sleep=50), timeout=60)
            await stub.Unary(EchoRequest(text="the one before has begun"), timeout=5)
            service.signal(signal.SIGINT)
            service.wait_for("draining")
            await asyncio.sleep(0.3)  # two signals at the same moment are one
            begun = time.monotonic()
            service.signal(signal.SIGINT)
            assert (await error_of(stuck)).code() is grpc.StatusCode.UNAVAILABLE
            assert service.exit_code(timeout=5) == 0
            assert time.monotonic() - begun < 1.5

    with EchoProcess(tmp_path, MESH_ETCD=f"127.0.0.1:{free_port()}", MESH_DRAIN="60") as service:
        asyncio.run(story(service))


def test_calls_do_not_notice_that_instances_take_turns_in_leaving() -> None:
    """A caller that moves away when told loses nothing: the settle time is enough for it."""

    async def story() -> None:
        settings = Settings(drain=2.0, settle=0.2)
        done = 0
        async with echo_server(settings) as staying:
            for _ in range(5):
                async with (
                    echo_server(settings) as leaving,
                    plain_channel(leaving) as old,
                    plain_channel(staying) as new,
                ):
                    going = asyncio.create_task(leaving.leave())
                    health = health_pb2_grpc.HealthStub(old)
                    async with asyncio.timeout(5):
                        while True:
                            status = (await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status
                            assert (await EchoServiceStub(old).Unary(EchoRequest(text="x"))).text == "x"
                            done += 1
                            if status == NOT_SERVING:
                                break
                    assert (await EchoServiceStub(new).Unary(EchoRequest(text="x"))).text == "x"
                    await going
        assert done >= 5

    asyncio.run(story())


def test_paused_it_wants_no_calls_and_answers_those_that_come() -> None:
    async def story() -> None:
        store = MemoryStore()
        async with echo_server(store=store) as server, plain_channel(server) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            [ready] = await _until_registered(store, "mesh")
            assert ready.state is State.READY
            await server.pause()
            assert [i.state for i in await _registered(store, "mesh")] == [State.PAUSED]
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
            assert (await EchoServiceStub(channel).Unary(EchoRequest(text="x"))).text == "x"
            await server.resume()
            assert [i.state for i in await _registered(store, "mesh")] == [State.READY]
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        assert await _registered(store, "mesh") == []

    asyncio.run(story())


@pytest.mark.alone
@pytest.mark.parametrize("name", ["Unary", "ServerStream"])
def test_a_call_that_can_end_in_time_does_whatever_its_contract_would_allow(name: str) -> None:
    """The contract's default of 10 s is longer than the drain of 2; that is no reason to cut it."""

    async def story() -> None:
        async with echo_server(Settings(drain=2.0, settle=0.0)) as server, plain_channel(server) as channel:
            stub = EchoServiceStub(channel)
            call = getattr(stub, name)(EchoRequest(text="x", sleep=0.5, count=1))
            await stub.Unary(EchoRequest(text="the one before has begun"))
            begun = time.monotonic()
            leaving = asyncio.ensure_future(server.leave())
            answers = [r.text async for r in call] if name == "ServerStream" else [(await call).text]
            assert answers == ["x"]
            await leaving
            assert time.monotonic() - begun < 1.5

    asyncio.run(story())


def test_leaving_twice_is_leaving_once() -> None:
    async def story() -> None:
        async with echo_server(QUICK) as server:
            await asyncio.gather(server.leave(), server.leave())
            await server.leave()

    asyncio.run(story())
