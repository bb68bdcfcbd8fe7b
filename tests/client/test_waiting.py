"""Instances come and go: calls wait, move and finish."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

import mesh
from mesh.instance import Endpoint, Instance, State
from mesh.memory import MemoryStore
from mesh.registry.record import encode, instance_key, policy_key
from support.fleet import IDEMPOTENT, SERVICE, US, UU, Host, fleet, slow, until
from users.v1 import users_pb2, users_pb2_grpc


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


async def put(store: MemoryStore, host: Host, number: int, state: State = State.READY) -> None:
    instance = Instance(SERVICE, f"i{number}", Endpoint("127.0.0.1", host.port), state=state)
    await store.put(instance_key("mesh", instance), encode(instance))


async def remove(store: MemoryStore, host: Host, number: int) -> None:
    await store.delete(instance_key("mesh", Instance(SERVICE, f"i{number}", Endpoint("127.0.0.1", host.port))))


def channel_over(store: Any, **options: Any) -> Any:
    return mesh.connect(SERVICE, store=store, settings=mesh.Settings(), policies=IDEMPOTENT, **options)


def test_a_call_waits_for_the_first_instance() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, MemoryStore() as store, channel_over(store) as channel:
            call = asyncio.ensure_future(wait(channel.unary_unary(UU)(b"x")))
            await asyncio.sleep(0.05)
            assert not call.done()
            await put(store, hosts[0], 1)
            assert await asyncio.wait_for(call, 1) == b"x"

    run(story())


async def wait(call: Any) -> Any:
    return await call


def test_a_service_without_instances_is_named() -> None:
    async def story() -> None:
        async with MemoryStore() as store, channel_over(store) as channel:
            with pytest.raises(mesh.CallError) as raised:
                await channel.unary_unary(UU)(b"x", timeout=0.05)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert raised.value.details() == "no instance of t.Test is registered (MemoryStore, prefix mesh)"
            with pytest.raises(mesh.CallError, match=r"no instance of t\.Test is registered") as raised:
                await channel.unary_unary(UU)(b"x", wait_for_ready=False)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

    run(story())


def test_calls_that_waited_in_vain_leave_nothing_behind() -> None:
    async def story() -> None:
        async with MemoryStore() as store, channel_over(store) as channel:
            calls = [channel.unary_unary(UU)(b"x", timeout=0.05) for _ in range(20)]
            calls[0].cancel()
            ends = await asyncio.gather(*map(wait, calls), return_exceptions=True)
            assert {type(end) for end in ends} == {mesh.CallError, asyncio.CancelledError}
            assert not channel._pool._waiters

    run(story())


def test_without_waiting_a_dead_endpoint_fails_at_once_and_is_named() -> None:
    async def story() -> None:
        async with mesh.connect(SERVICE, endpoints=["127.0.0.1:1"]) as channel:
            with pytest.raises(mesh.CallError, match=r"no instance of t.Test can be reached: 127\.0\.0\.1:1") as raised:
                await channel.unary_unary(UU)(b"x", wait_for_ready=False, timeout=20)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

    run(story())


def test_an_etcd_that_does_not_answer_is_named() -> None:
    async def story() -> None:
        settings = mesh.Settings(etcd=(Endpoint("127.0.0.1", 1),))
        async with mesh.connect(SERVICE, settings=settings) as channel:
            with pytest.raises(mesh.CallError, match=r"not known yet: .*\(etcd 127\.0\.0\.1:1, prefix mesh\)"):
                await channel.unary_unary(UU)(b"x", timeout=0.2)

    run(story())


def test_draining_instances_are_named() -> None:
    async def story() -> None:
        async with fleet(1) as hosts, MemoryStore() as store, channel_over(store) as channel:
            await put(store, hosts[0], 1, State.DRAINING)
            with pytest.raises(mesh.CallError, match=r"every instance of t\.Test is draining or paused: 1 in all"):
                await channel.unary_unary(UU)(b"x", timeout=0.2)

    run(story())


@pytest.mark.alone
def test_a_new_instance_is_called_within_50_ms_of_its_registration() -> None:
    async def story() -> None:
        loop, took = asyncio.get_running_loop(), []
        async with fleet(9) as hosts, MemoryStore() as store, channel_over(store) as channel:
            unary = channel.unary_unary(UU)
            for number, host in enumerate(hosts):
                await put(store, host, number)
                registered = loop.time()
                while not host.calls:
                    await unary(b"x")
                took.append(loop.time() - registered)
        assert sorted(took)[len(took) // 2] < 0.05, took

    run(story())


def test_an_instance_that_drains_gets_no_new_call_and_finishes_its_own() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, MemoryStore() as store, channel_over(store) as channel:
            for number, host in enumerate(hosts):
                await put(store, host, number)
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            hosts[0].answer = hosts[1].answer = slow(0.3)
            unary = channel.unary_unary(UU)
            calls = [unary(b"x") for _ in range(4)]
            await until(lambda: hosts[0].calls == 2)
            await put(store, hosts[0], 0, State.DRAINING)
            await until(lambda: len(channel._pool.roster.pickable) == 1)
            await remove(store, hosts[0], 0)
            await until(lambda: len(channel._pool.roster.slots) == 1)
            hosts[1].answer = slow(0)
            for _ in range(6):
                await unary(b"x")
            assert [await call for call in calls] == [b"x"] * 4
            assert hosts[0].calls == 2

    run(story())


def test_a_whole_prefix_deleted_by_accident_fails_no_call() -> None:
    async def story() -> None:
        async with fleet(2) as hosts, MemoryStore() as store, channel_over(store) as channel:
            for number, host in enumerate(hosts):
                await put(store, host, number)
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            for number, host in enumerate(hosts):
                await remove(store, host, number)
            await asyncio.sleep(0.05)
            for _ in range(10):
                assert await channel.unary_unary(UU)(b"x") == b"x"

    run(story())


def test_an_instance_that_comes_back_is_called_again() -> None:
    async def story() -> None:
        async with fleet(2) as hosts:
            channel = mesh.connect(SERVICE, endpoints=[h.address for h in hosts], policies=IDEMPOTENT)
            async with channel:
                unary = channel.unary_unary(UU)
                for _ in range(3):
                    await until(lambda: len(channel._pool.roster.pickable) == 2)
                    await hosts[0].stop()
                    for _ in range(20):
                        assert await unary(b"x") == b"x"
                    assert len(channel._pool.roster.pickable) == 1
                    await hosts[0].start()
                await until(lambda: len(channel._pool.roster.pickable) == 2)

    run(story())


def test_a_long_call_on_an_instance_that_is_cut_off_is_told_as_unavailable() -> None:
    async def story() -> None:
        settings = mesh.Settings(drain=0.05)
        async with fleet(1) as hosts, MemoryStore() as store:
            channel = mesh.connect(SERVICE, store=store, settings=settings)
            async with channel:
                await put(store, hosts[0], 0)
                hosts[0].answer = slow(20)
                unary, stream = channel.unary_unary(UU)(b"x"), channel.unary_stream(US)(b"x")
                await until(lambda: hosts[0].calls == 2)
                await put(store, hosts[0], 0, State.DRAINING)
                await until(lambda: not channel._pool.roster.pickable)
                await remove(store, hosts[0], 0)
                with pytest.raises(mesh.CallError, match="has left"):
                    await unary
                with pytest.raises(mesh.CallError, match="has left"):
                    await stream.read()

    run(story())


def test_connectivity_is_told() -> None:
    async def story() -> None:
        async with fleet(1) as hosts:
            channel = mesh.connect(SERVICE, endpoints=[hosts[0].address])
            assert channel.get_state() is grpc.ChannelConnectivity.IDLE
            await asyncio.wait_for(channel.channel_ready(), 5)
            assert channel.get_state() is grpc.ChannelConnectivity.READY
            change = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
            await hosts[0].stop()
            await asyncio.wait_for(change, 5)
            assert channel.get_state() is not grpc.ChannelConnectivity.READY
            await channel.close()

    run(story())


def test_an_operators_policy_takes_effect_with_the_next_call_and_nonsense_is_ignored() -> None:
    async def story() -> None:
        service = "users.v1.UserService"
        async with MemoryStore() as store, mesh.connect(service, store=store, settings=mesh.Settings()) as channel:
            stub = users_pb2_grpc.UserServiceStub(channel)

            async def seconds_allowed() -> float:
                call = stub.GetUser(users_pb2.GetUserRequest(id="7"))
                left = call.time_remaining()
                call.cancel()
                return float(left)

            assert 4 < await seconds_allowed() <= 5
            await store.put(policy_key("mesh", service), b'{"timeout": "77s"}')
            await until(lambda: channel._policies.of(f"/{service}/GetUser").timeout == 77)
            assert 76 < await seconds_allowed() <= 77
            assert channel._policies.of(f"/{service}/GetUser").idempotent
            await store.put(policy_key("mesh", service), b"{nonsense")
            await store.put(policy_key("mesh", "other.Service"), b"{}")
            await asyncio.sleep(0.05)
            assert channel._policies.of(f"/{service}/GetUser").timeout == 77
            await store.delete(policy_key("mesh", service))
            await until(lambda: channel._policies.of(f"/{service}/GetUser").timeout == 5)

    run(story())


def test_channels_of_one_loop_share_one_session() -> None:
    from mesh.client.source import _Session

    async def story() -> None:
        settings = mesh.Settings(etcd=(Endpoint("127.0.0.1", 1),))
        one, two = (mesh.connect(SERVICE, settings=settings) for _ in range(2))
        async with one:
            async with two:
                assert len(_Session._open) == 1
                assert len(next(iter(_Session._open.values())).resolver._policies) == 1
            assert len(_Session._open) == 1
        assert not _Session._open

    run(story())


def test_nothing_is_left_after_a_thousand_mixed_calls(tmp_path: Path) -> None:
    async def story() -> None:
        async with fleet(3) as hosts:
            await asyncio.sleep(0)
            before = asyncio.all_tasks()
            channel = mesh.connect(SERVICE, endpoints=[h.address for h in hosts], policies=IDEMPOTENT)
            unary, stream = channel.unary_unary(UU), channel.unary_stream(US)

            async def one(number: int) -> None:
                kind = number % 5
                if kind == 0:
                    assert await unary(b"x") == b"x"
                elif kind == 1:
                    assert len([m async for m in stream(b"x")]) == 3
                elif kind == 2:
                    unary(b"x").cancel()
                elif kind == 3:
                    await (call := stream(b"x")).read()
                    call.cancel()
                else:
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(wait(unary(b"slow")), 0.001)

            async def answer(message: bytes, context: Any) -> bytes:
                if message == b"slow":
                    await asyncio.sleep(1)
                return message

            for host in hosts:
                host.answer = answer
            for start in range(0, 1000, 50):
                await asyncio.gather(*(one(n) for n in range(start, start + 50)))
            slots = channel._pool.roster.slots
            await until(lambda: all(s.connection.in_flight == 0 for s in slots))
            await channel.close()
            # What grpc's own server still does is none of the client's.
            left = [t for t in asyncio.all_tasks() - before if "server" not in repr(t) and "_handle" not in repr(t)]
            assert not left, left

    run(story())
