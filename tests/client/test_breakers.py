"""Breakers on a real channel: slow and failing instances left alone, and what an operator's policy does at run time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

import mesh
from mesh.instance import Endpoint, Instance
from mesh.memory import MemoryStore
from mesh.policy import Balancer, BreakerMode, BreakerPolicy, HedgingPolicy, MethodPolicy
from mesh.registry.record import encode, instance_key, policy_key
from support.fleet import IDEMPOTENT, QUICK, SERVICE, UU, Answer, Host, echo, fleet, refuse, slow, until
from users.v1 import users_pb2, users_pb2_grpc

USERS = "users.v1.UserService"


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


def verdicts(rule: str) -> float:
    labels = {"service": SERVICE, "rule": rule}
    return REGISTRY.get_sample_value("mesh_client_breaker_verdicts_total", labels) or 0.0


async def call_often(channel: Any, times: int, at_once: int = 12) -> None:
    stub = channel.unary_unary(UU)

    async def some() -> None:
        for _ in range(times // at_once):
            await stub(b"x")

    await asyncio.gather(*(some() for _ in range(at_once)))


def sometimes(share: float, answer: Answer) -> Answer:
    dice = random.Random(1)

    async def decide(message: bytes, context: Any) -> bytes:
        return await (answer if dice.random() < share else echo)(message, context)

    return decide


@pytest.mark.parametrize(
    ("sick", "rule"),
    [(slow(0.25), "slow_outlier"), (sometimes(0.3, refuse("UNAVAILABLE")), "failure_outlier")],
    ids=["grey", "failing"],
)
def test_an_instance_worse_than_the_others_is_left_alone(sick: Answer, rule: str) -> None:
    async def story() -> None:
        async with fleet(3) as hosts, mesh.connect(SERVICE, endpoints=addresses(hosts), policies=IDEMPOTENT) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            await call_often(channel, 240)
            before = verdicts(rule)
            hosts[1].answer = sick
            for _ in range(10):
                await call_often(channel, 60)
            assert verdicts(rule) == before + 1
            calls = [host.calls for host in hosts]
            await call_often(channel, 120)
            assert [host.calls - c for host, c in zip(hosts, calls, strict=True)] == [60, 0, 60]

    run(story())


def test_an_instance_that_hedges_overtake_is_left_alone() -> None:
    async def story() -> None:
        hedged = HedgingPolicy(max_attempts=2, delay=0.03, follow_p95=False)
        policies = {UU: MethodPolicy(idempotent=True, hedging=hedged)}
        async with fleet(3) as hosts, mesh.connect(SERVICE, endpoints=addresses(hosts), policies=policies) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            await call_often(channel, 240)
            # The budget pays for some hedges: those calls are answered long before they would count as slow.
            hosts[1].answer = slow(0.15)
            before, calls = verdicts("slow_outlier"), hosts[1].calls
            while verdicts("slow_outlier") == before:
                await call_often(channel, 12, at_once=6)
                assert hosts[1].calls - calls < 30

    run(story())


def addresses(hosts: list[Host]) -> list[str]:
    return [host.address for host in hosts]


@pytest.fixture
def served() -> Iterator[list[Host]]:
    """Run three servers on a thread of their own."""
    ready: list[Any] = []

    async def serve() -> None:
        end = asyncio.Event()
        async with fleet(3) as hosts:
            ready.extend([hosts, asyncio.get_running_loop(), end])
            await end.wait()

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(asyncio.run, serve())
        while not ready:
            assert not done.done()
            time.sleep(0.005)
        yield ready[0]
        ready[1].call_soon_threadsafe(ready[2].set)
        done.result(10)


def test_a_grey_instance_is_left_alone_by_the_blocking_twin(served: list[Host]) -> None:
    with mesh.blocking.connect(SERVICE, endpoints=addresses(served), policies=IDEMPOTENT) as channel:
        grpc.channel_ready_future(channel).result(timeout=5)
        stub = channel.unary_unary(UU)
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(stub, [b"x"] * 240))
            served[0].answer = slow(0.25)
            list(threads.map(stub, [b"x"] * 300))
            calls = served[0].calls
            list(threads.map(stub, [b"x"] * 100))
        assert served[0].calls == calls


def test_metrics_only_tells_and_leaves_nobody() -> None:
    async def story() -> None:
        policy = MethodPolicy(idempotent=True, retry=QUICK, breaker=BreakerPolicy(mode=BreakerMode.METRICS_ONLY))
        async with (
            fleet(3) as hosts,
            mesh.connect(SERVICE, endpoints=addresses(hosts), policies={UU: policy}) as channel,
        ):
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            # A third of the calls is more than a budget pays for that has not saved.
            await call_often(channel, 240)
            hosts[0].answer, hosts[0].calls = refuse("UNAVAILABLE"), 0
            before = verdicts("consecutive_failures")
            await call_often(channel, 30, at_once=1)
            assert hosts[0].calls >= 10
            assert verdicts("consecutive_failures") == before + hosts[0].calls // 5

    run(story())


@pytest.mark.parametrize("balancer", [None, Balancer.LEAST_LOADED])
def test_an_operator_closes_a_service_to_its_callers_and_opens_it_again_without_reconnecting(
    balancer: Balancer | None,
) -> None:
    async def story() -> None:
        async with fleet(2) as hosts, MemoryStore() as store:
            for number, host in enumerate(hosts):
                instance = Instance(USERS, f"i{number}", Endpoint("127.0.0.1", host.port))
                await store.put(instance_key("mesh", instance), encode(instance))
            async with mesh.connect(USERS, store=store, settings=mesh.Settings(), balancer=balancer) as channel:
                stub = users_pb2_grpc.UserServiceStub(channel)
                roster = channel._pool.roster
                await until(lambda: len(roster.pickable) == 2)
                connections = [slot.connection for slot in roster.slots]

                async def answer() -> tuple[grpc.StatusCode, str]:
                    with pytest.raises(mesh.CallError) as raised:
                        await stub.GetUser(users_pb2.GetUserRequest(id="7"), timeout=5)
                    return raised.value.code(), raised.value.details() or ""

                # These hosts do not know the service; but they are reached.
                assert (await answer())[0] is grpc.StatusCode.UNIMPLEMENTED
                await store.put(policy_key("mesh", USERS), b'{"breaker": {"mode": "MODE_FORCED_OPEN"}}')
                await until(lambda: roster.is_forced_open)
                code, details = await answer()
                assert code is grpc.StatusCode.UNAVAILABLE
                assert "closed to its callers" in details
                await store.put(policy_key("mesh", USERS), b'{"breaker": {"consecutiveFailures": 2}}')
                await until(lambda: not roster.is_forced_open)
                assert (await answer())[0] is grpc.StatusCode.UNIMPLEMENTED
                assert {slot.breaker._policy.consecutive_failures for slot in roster.slots} == {2}
                assert [slot.connection for slot in roster.slots] == connections

    run(story())


def test_a_call_that_waits_is_told_when_an_operator_closes_the_service() -> None:
    async def story() -> None:
        async with MemoryStore() as store, mesh.connect(USERS, store=store, settings=mesh.Settings()) as channel:
            stub = users_pb2_grpc.UserServiceStub(channel)
            waiting = stub.GetUser(users_pb2.GetUserRequest(id="7"), timeout=20)
            await asyncio.sleep(0)
            await store.put(policy_key("mesh", USERS), b'{"breaker": {"mode": "MODE_FORCED_OPEN"}}')
            with pytest.raises(mesh.CallError, match="closed to its callers"):
                await waiting

    run(story())
