"""Balancers on a real channel: slow ones left, weights honoured, keys kept, zones preferred, subsets held."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

import mesh
from mesh.client.policies import ServicePolicies
from mesh.instance import Endpoint, Instance, State
from mesh.memory import MemoryStore
from mesh.policy import Balancer, BalancerPolicy, MethodPolicy
from mesh.registry.record import encode, instance_key, policy_key
from support.fleet import IDEMPOTENT, SERVICE, SS, UU, Host, fleet, refuse, slow, until
from users.v1 import users_pb2


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


async def put(store: MemoryStore, host: Host | int, number: int, **more: Any) -> None:
    port = host.port if isinstance(host, Host) else host
    instance = Instance(SERVICE, f"i{number}", Endpoint("127.0.0.1", port), **more)
    await store.put(instance_key("mesh", instance), encode(instance))


@asynccontextmanager
async def connected(
    size: int, balancer: BalancerPolicy | Balancer, *, zone: str = "", of: Any = lambda number: {}
) -> AsyncIterator[tuple[list[Host], Any, MemoryStore]]:
    """Run hosts that are registered as `of` says, and a channel that is connected to all of them."""
    settings = mesh.Settings(zone=zone)
    async with fleet(size) as hosts, MemoryStore() as store:
        for number, host in enumerate(hosts):
            await put(store, host, number, **of(number))
        async with mesh.connect(
            SERVICE, store=store, settings=settings, policies=IDEMPOTENT, balancer=balancer
        ) as channel:
            await until(lambda: len(channel._pool.roster.pickable) == size)
            yield hosts, channel, store


async def call_often(channel: Any, times: int, *, at_once: int = 4, message: Any = b"x", **options: Any) -> None:
    stub = channel.unary_unary(UU)

    async def some() -> None:
        for _ in range(times // at_once):
            await stub(message, **options)

    await asyncio.gather(*(some() for _ in range(at_once)))


def calls(hosts: list[Host]) -> list[int]:
    return [host.calls for host in hosts]


def test_least_loaded_leaves_a_slow_one_of_three() -> None:
    async def story() -> None:
        async with connected(3, Balancer.LEAST_LOADED) as (hosts, channel, _):
            hosts[1].answer = slow(0.2)
            await call_often(channel, 600)
            assert sum(calls(hosts)) == 600
            assert hosts[1].calls <= 12
            assert min(hosts[0].calls, hosts[2].calls) > 150

    run(story())


def test_least_loaded_leaves_one_that_says_it_is_full_though_it_says_so_fast() -> None:
    async def story() -> None:
        async with connected(3, Balancer.LEAST_LOADED) as (hosts, channel, _):
            for host in hosts:
                host.answer = slow(0.002)
            hosts[0].answer = refuse("RESOURCE_EXHAUSTED")
            stub, refused = channel.unary_unary(UU), 0
            for _ in range(300):
                try:
                    await stub(b"x")
                except mesh.CallError as e:
                    refused += e.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert 1 <= refused < 30

    run(story())


def test_loads_are_given_back_however_calls_end() -> None:
    async def story() -> None:
        async with connected(2, Balancer.LEAST_LOADED) as (hosts, channel, _):
            await call_often(channel, 40)
            hosts[0].answer = refuse("UNAVAILABLE")
            await call_often(channel, 40)
            for host in hosts:
                host.answer = slow(10)
            hung = [channel.unary_unary(UU)(b"x") for _ in range(6)]
            stream = channel.stream_stream(SS)()
            loads = [slot.candidate.load for slot in channel._pool.roster.slots]
            assert sum(load.in_flight for load in loads) == 7
            for call in [*hung, stream]:
                call.cancel()
            with pytest.raises(mesh.CallError):
                await channel.unary_unary(UU)(b"x", timeout=0.05)
            await until(lambda: all(load.in_flight == 0 for load in loads))

    run(story())


def test_weights_of_the_registry_are_honoured() -> None:
    async def story() -> None:
        async with connected(3, Balancer.WEIGHTED, of=lambda n: {"weight": (1, 2, 5)[n]}) as (hosts, channel, store):
            await call_often(channel, 800)
            assert [abs(got - wanted) <= 3 for got, wanted in zip(calls(hosts), (100, 200, 500), strict=True)]
            await put(store, hosts[2], 2, weight=1)
            await until(lambda: channel._pool.roster.pickable[2].instance.weight == 1)
            before = calls(hosts)
            await call_often(channel, 400)
            gained = [now - then for now, then in zip(calls(hosts), before, strict=True)]
            assert all(abs(got - wanted) <= 3 for got, wanted in zip(gained, (100, 200, 100), strict=True))

    run(story())


def test_one_key_of_the_metadata_goes_to_one_instance_and_elsewhere_when_that_is_gone() -> None:
    async def story() -> None:
        policy = BalancerPolicy(Balancer.CONSISTENT_HASH, hash_metadata="x-tenant")
        async with connected(3, policy) as (hosts, channel, _):
            owners: dict[str, int] = {}
            for tenant in map(str, range(40)):
                before = calls(hosts)
                await call_often(channel, 8, metadata=[("x-other", "1"), ("x-tenant", tenant)])
                gained = [now - then for now, then in zip(calls(hosts), before, strict=True)]
                assert sorted(gained) == [0, 0, 8]
                owners[tenant] = gained.index(8)
            assert set(owners.values()) == {0, 1, 2}
            await hosts[0].stop()
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            for tenant, owner in owners.items():
                before = calls(hosts)
                await call_often(channel, 4, metadata=[("x-tenant", tenant)])
                gained = [now - then for now, then in zip(calls(hosts), before, strict=True)]
                assert gained[owner] == (4 if owner else 0)

    run(story())


def test_a_retry_leaves_the_owner_of_the_key() -> None:
    async def story() -> None:
        policy = BalancerPolicy(Balancer.CONSISTENT_HASH, hash_metadata="x-tenant")
        async with connected(3, policy) as (hosts, channel, _):
            hosts[0].answer = refuse("UNAVAILABLE")
            for tenant in map(str, range(12)):
                await channel.unary_unary(UU)(b"x", metadata=[("x-tenant", tenant)])

    run(story())


def test_the_key_may_be_a_field_of_the_request() -> None:
    async def story() -> None:
        policy = BalancerPolicy(Balancer.CONSISTENT_HASH, hash_field="id")
        async with connected(3, policy) as (hosts, channel, _):
            stub = channel.unary_unary(UU, users_pb2.GetUserRequest.SerializeToString, None)
            owners = Counter()
            for number in range(30):
                before = calls(hosts)
                for _ in range(5):
                    await stub(users_pb2.GetUserRequest(id=f"user-{number}"))
                gained = [now - then for now, then in zip(calls(hosts), before, strict=True)]
                assert sorted(gained) == [0, 0, 5]
                owners[gained.index(5)] += 1
            assert len(owners) == 3
            before = calls(hosts)
            for _ in range(60):
                await stub(users_pb2.GetUserRequest())
            assert all(now > then for now, then in zip(calls(hosts), before, strict=True)), "no key, any instance"

    run(story())


def test_calls_stay_in_the_zone_until_it_cannot_bear_them() -> None:
    async def story() -> None:
        policy = BalancerPolicy(prefer_zone=True)
        async with connected(4, policy, zone="a", of=lambda n: {"zone": "aabb"[n]}) as (hosts, channel, _):
            await call_often(channel, 100)
            assert calls(hosts) == [50, 50, 0, 0]
            await hosts[0].stop()
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            await call_often(channel, 600)
            # One of three instances left: it bears 2/3 of what its zone asks for.
            assert 340 < hosts[1].calls - 50 < 460
            await hosts[1].stop()
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            await call_often(channel, 40)

    run(story())


def test_a_newcomer_starts_slowly() -> None:
    async def story() -> None:
        async with connected(2, BalancerPolicy(slow_start=1000.0)) as (_, channel, store), fleet(1) as late:
            for slot in channel._pool.roster.slots:
                slot.candidate.since -= 1000.0
            await put(store, late[0], 9)
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            await call_often(channel, 420)
            assert 15 <= late[0].calls <= 25

    run(story())


def test_a_client_of_two_hundred_instances_connects_to_its_subset() -> None:
    async def story() -> None:
        policy = BalancerPolicy(subset_size=10)
        async with MemoryStore() as store:
            for number in range(200):
                await put(store, 20000 + number, number)
            settings = mesh.Settings(instance_id="client-1")
            async with mesh.connect(SERVICE, store=store, settings=settings, balancer=policy) as channel:
                roster = channel._pool.roster
                await until(lambda: roster.slots)
                names = {slot.instance.id for slot in roster.slots}
                assert len(names) == 10
                gone = sorted(names)[0]
                await put(store, 20000 + int(gone[1:]), int(gone[1:]), state=State.DRAINING)
                await until(lambda: {s.instance.id for s in roster.slots} > names)
                assert len(roster.slots) == 11, "one more, and the draining one until it has gone"

    run(story())


def test_who_drops_out_of_the_subset_is_left_in_good_order() -> None:
    async def story() -> None:
        async with connected(6, BalancerPolicy(subset_size=6)) as (hosts, channel, store):
            for host in hosts:
                host.answer = slow(0.3)
            under_way = [asyncio.ensure_future(wait(channel.unary_unary(UU)(b"x"))) for _ in range(12)]
            await until(lambda: all(calls(hosts)))
            # Ten more instances: some of them take the place of the first six, whose calls go on.
            for number in range(10, 20):
                await put(store, 20000 + number, number)
            await until(lambda: any(int(s.instance.id[1:]) >= 10 for s in channel._pool.roster.slots))
            assert len(channel._pool.roster.slots) == 6
            assert await asyncio.gather(*under_way) == [b"x"] * 12

    run(story())


async def wait(call: Any) -> Any:
    return await call


def test_an_operator_changes_the_balancer_of_a_living_channel() -> None:
    async def story() -> None:
        service = "users.v1.UserService"
        async with MemoryStore() as store, mesh.connect(service, store=store, settings=mesh.Settings()) as channel:
            pool = channel._pool
            assert pool.balance is None
            override = b'{"balancer": {"kind": "KIND_LEAST_LOADED", "subsetSize": 3}}'
            await store.put(policy_key("mesh", service), override)
            await until(lambda: pool.balance is not None)
            await store.delete(policy_key("mesh", service))
            await until(lambda: pool.balance is None)

    run(story())


def test_round_robin_is_the_default_and_costs_no_balance() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, mesh.connect(SERVICE, endpoints=[hosts[0].address]) as channel:
            await channel.unary_unary(UU)(b"x")
            assert channel._pool.balance is None
            assert all(slot.candidate is None for slot in channel._pool.roster.slots)

    run(story())


def test_a_blocking_channel_takes_a_balancer_too() -> None:
    with mesh.blocking.connect(SERVICE, endpoints=["127.0.0.1:1"], balancer=Balancer.LEAST_LOADED) as channel:
        assert channel._inner._pool.balance is not None


def test_the_makers_balancer_wins_for_every_method() -> None:
    policy = BalancerPolicy(Balancer.CONSISTENT_HASH, hash_field="id")
    rules = ServicePolicies("t.Test", {UU: MethodPolicy()}, policy)
    assert rules.balancer == policy
    assert rules.of(UU).balancer == rules.of("/t.Test/Other").balancer == policy


def test_clients_with_lists_in_another_order_agree_on_the_owner_of_a_key() -> None:
    async def story() -> None:
        async with fleet(3) as hosts:
            addresses = [host.address for host in hosts]
            policy = BalancerPolicy(Balancer.CONSISTENT_HASH, hash_metadata="x-tenant")
            for tenant in map(str, range(5)):
                before = calls(hosts)
                for listed in (addresses, addresses[::-1]):
                    async with mesh.connect(SERVICE, endpoints=listed, balancer=policy) as channel:
                        await until(lambda channel=channel: len(channel._pool.roster.pickable) == 3)
                        await channel.unary_unary(UU)(b"x", metadata=[("x-tenant", tenant)])
                assert sorted(now - then for now, then in zip(calls(hosts), before, strict=True)) == [0, 0, 2]

    run(story())


def test_another_instance_at_the_same_address_inherits_no_latency() -> None:
    async def story() -> None:
        async with connected(2, Balancer.LEAST_LOADED) as (hosts, channel, store):
            hosts[0].answer = slow(0.1)
            await call_often(channel, 40)
            first = next(s for s in channel._pool.roster.slots if s.name == hosts[0].address)
            assert first.candidate.load.measured
            instance = Instance(SERVICE, "again", Endpoint("127.0.0.1", hosts[0].port), started=1.0)
            await store.put(instance_key("mesh", instance), encode(instance))
            await until(lambda: first.instance.id == "again")
            assert not first.candidate.load.measured

    run(story())
