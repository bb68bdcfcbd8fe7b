"""What Envoy does with news from the control plane, good and bad."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import grpc
import pytest

from mesh.controlplane import catalog
from mesh.instance import Instance, State
from mesh.xds.transcoder import transcoder
from support.counted import counted
from support.front import SERVICE, Front, Tiny, TinyUsers
from support.http1 import Client
from support.ports import free_port
from support.views import instance
from users.v1 import users_pb2, users_pb2_grpc

_ROUNDS = 9
ENDPOINTS = f"cluster.{SERVICE}.update_success"


async def until(condition, seconds: float = 10.0) -> None:  # type: ignore[no-untyped-def]  # any callable
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def _nobody(front: Front) -> Instance:
    return instance(SERVICE, 9, free_port(), contract=front.contract)


@pytest.mark.alone
def test_new_instance_has_its_first_call_within_250_ms(tmp_path: Path) -> None:
    async def first_call(front: Front, stub: users_pb2_grpc.UserServiceStub) -> float:
        async with Tiny(TinyUsers()) as new:
            begin = time.monotonic()
            front.views.set(SERVICE, *front.instances(), instance(SERVICE, 9, new.port, contract=front.contract))
            while new.servicer.calls == 0:
                await stub.ListUsers(users_pb2.ListUsersRequest(), timeout=5)
            taken = time.monotonic() - begin
            front.views.set(
                SERVICE,
                *front.instances(),
                instance(SERVICE, 9, new.port, contract=front.contract, state=State.DRAINING),
            )
            calls = -1
            while calls != new.servicer.calls:
                calls = new.servicer.calls
                await asyncio.sleep(0.1)
            return taken

    async def story() -> None:
        async with Front(tmp_path, instances=2) as front, grpc.aio.insecure_channel(front.address) as channel:
            stub = users_pb2_grpc.UserServiceStub(channel)
            taken = sorted([await first_call(front, stub) for _ in range(_ROUNDS)])
            print(" ".join(f"{seconds * 1000:.0f}" for seconds in taken), "ms")
            assert statistics.median(taken) < 0.25

    asyncio.run(story())


def test_refused_news_leave_the_last_good_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with Front(tmp_path) as front:
            client = Client(front.address)
            before = counted("mesh_xds_nacks_total", type="ECDS")
            with monkeypatch.context() as patch:
                patch.setattr(catalog, "transcoder", lambda _, services: transcoder(b"no descriptors", services))
                front.views.set_policy(SERVICE, b'{"timeout": "3s"}')
                await until(lambda: counted("mesh_xds_nacks_total", type="ECDS") == before + 1)
                assert (await client.ask("GET", "/v1/users")).status == 200
                # Whatever would have been sent again would have come before news that are sent now.
                told = front.envoy.stats(ENDPOINTS).popitem()[1]
                front.views.set(SERVICE, *front.instances(), _nobody(front))
                await until(lambda: front.envoy.stats(ENDPOINTS).popitem()[1] == told + 1)
                assert counted("mesh_xds_nacks_total", type="ECDS") == before + 1
                pushed = front.envoy.stats("http.edge.rds.front.update_success")
                assert pushed["http.edge.rds.front.update_success"] == 2
            front.views.set_policy(SERVICE, b'{"timeout": "4s"}')
            await until(lambda: front.envoy.stats("http.edge.rds.front.update_success").popitem()[1] == 3)
            assert (await client.ask("GET", "/v1/users")).status == 200
            await client.close()

    asyncio.run(story())


def test_changed_cluster_is_replaced_without_a_failed_call(tmp_path: Path) -> None:
    async def story() -> None:
        async with Front(tmp_path, instances=2) as front:
            client = Client(front.address)
            modified = "cluster_manager.cluster_modified"
            for failures in (3, 4, 5):
                before = front.envoy.stats(modified)[modified]
                front.views.set_policy(SERVICE, b'{"breaker": {"consecutive_failures": %d}}' % failures)
                while front.envoy.stats(modified)[modified] == before and failures != 5:
                    assert (await client.ask("GET", "/v1/users")).status == 200
                for _ in range(20):
                    assert (await client.ask("GET", "/v1/users")).status == 200
            await until(lambda: front.envoy.stats("cluster_manager.warming_clusters").popitem()[1] == 0)
            await client.close()

    asyncio.run(story())


def test_front_without_a_service_answers_404(tmp_path: Path) -> None:
    async def story() -> None:
        async with Front(tmp_path, instances=0) as front:
            client = Client(front.address)
            answer = await client.ask("GET", "/v1/users")
            assert answer.status == 404
            assert answer.json()["code"] == 5
            async with Tiny() as first:
                front.views.set(SERVICE, instance(SERVICE, 1, first.port, contract=front.contract))
                async with asyncio.timeout(5):
                    while (await client.ask("GET", "/v1/users")).status != 200:
                        await asyncio.sleep(0.01)
            await client.close()

    asyncio.run(story())


def test_service_whose_instances_said_goodbye_answers_503(tmp_path: Path) -> None:
    async def story() -> None:
        async with Front(tmp_path) as front:
            client = Client(front.address)
            [only] = front.instances()
            front.views.set(SERVICE, only.with_state(State.DRAINING))
            async with asyncio.timeout(5):
                while (answer := await client.ask("GET", "/v1/users")).status == 200:
                    await asyncio.sleep(0.01)
            assert answer.status == 503
            assert answer.json() == {"code": 14, "message": "The service cannot be reached. Try again later."}
            await client.close()

    asyncio.run(story())
