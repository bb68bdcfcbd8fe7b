"""What instances say of their own health, and what clients make of it: with servers of the mesh and with others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

import mesh
import mesh.blocking
from mesh.client.health import HealthWatch
from mesh.instance import State
from mesh.memory import MemoryStore
from mesh.policy import MethodPolicy
from mesh.server import Server
from mesh.settings import Settings
from mesh.wallclock import CLOCK, DICE
from support.echo import SERVICE, EchoRequest, EchoServicer, EchoServiceStub, echo_pb2_grpc
from support.fleet import until

Status = health_pb2.HealthCheckResponse
NEVER_AGAIN = {f"/{SERVICE}/Unary": MethodPolicy()}


@pytest.fixture(autouse=True)
def _asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.client.connection._SETTLED", 0.01)
    monkeypatch.setattr("mesh.client.health._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("mesh.client.health._LONGEST_PAUSE", 0.02)


def run(story: Any) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


@asynccontextmanager
async def servers(store: MemoryStore, names: str = "abc") -> AsyncIterator[list[Server]]:
    settings = [Settings(drain=20.0, settle=1.0, instance_id=name) for name in names]
    made = [Server(EchoServicer(s.instance_id), settings=s, store=store.session()) for s in settings]
    for server in made:
        await server.start()
    try:
        yield made
    finally:
        await asyncio.gather(*(server.leave(at_once=True) for server in made))


async def watched(channel: Any, servers: list[Server]) -> None:
    """Return when everybody's health is watched."""
    await until(lambda: sum(len(server._router.plumbing) for server in servers) == len(servers))
    await until(lambda: len(channel._pool.roster.pickable) == len(servers))


@asynccontextmanager
async def site() -> AsyncIterator[tuple[list[Server], mesh.Channel, MemoryStore]]:
    """Run three servers and a channel that watches their health. Nothing may be sent twice."""
    async with (
        MemoryStore() as store,
        servers(store) as made,
        mesh.connect(SERVICE, store=store, settings=Settings(), policies=NEVER_AGAIN) as channel,
    ):
        await watched(channel, made)
        yield made, channel, store


async def who_answers(stub: Any, calls: int = 12) -> Counter[str]:
    return Counter([(await stub.Unary(EchoRequest())).instance for _ in range(calls)])


def test_one_that_says_it_is_not_serving_is_passed_over_until_it_is() -> None:
    async def story() -> None:
        async with site() as (made, channel, _):
            stub, pool = EchoServiceStub(channel), channel._pool
            made[0]._health.set(False)
            await until(lambda: len(pool.roster.pickable) == 2)
            assert set(await who_answers(stub)) == {"b", "c"}
            made[0]._health.set(True)
            await until(lambda: len(pool.roster.pickable) == 3)
            assert set(await who_answers(stub)) == {"a", "b", "c"}

    run(story())


def test_where_nobody_says_that_he_is_serving_all_are_called() -> None:
    async def story() -> None:
        async with site() as (made, channel, _):
            for server in made:
                server._health.set(False)
            await until(lambda: not any(slot.serving for slot in channel._pool.roster.slots))
            assert set(await who_answers(EchoServiceStub(channel))) == {"a", "b", "c"}

    run(story())


def test_an_instance_that_leaves_while_the_registry_is_away_is_left_without_a_failed_call() -> None:
    async def story() -> None:
        async with site() as ((leaver, *_), channel, store):
            stub, over = EchoServiceStub(channel), asyncio.Event()

            async def caller() -> None:
                while not over.is_set():
                    await stub.Unary(EchoRequest(sleep=0.002))

            callers = [asyncio.create_task(caller()) for _ in range(8)]
            store.away()
            leaving = asyncio.create_task(leaver.leave())
            await until(lambda: len(channel._pool.roster.pickable) == 2)
            # It still listens: nobody was told by a broken connection, nor by the registry.
            left = next(slot for slot in channel._pool.roster.slots if not slot.serving)
            assert (left.instance.id, left.instance.state, left.connected) == ("a", State.READY, True)
            await leaving
            over.set()
            await asyncio.gather(*callers)
            store.away(False)

    run(story())


def test_threads_heed_it_too() -> None:
    def calls(channel: mesh.blocking.Channel) -> set[str]:
        stub = EchoServiceStub(channel)
        return {stub.Unary(EchoRequest(), timeout=5).instance for _ in range(12)}

    async def story() -> None:
        async with MemoryStore() as store, servers(store) as made:
            where = [str(server.endpoint) for server in made]
            with mesh.blocking.connect(SERVICE, endpoints=where) as channel:
                assert await asyncio.to_thread(calls, channel) <= {"a", "b", "c"}
                await watched(channel._inner, made)
                made[0]._health.set(False)
                await until(lambda: len(channel._inner._pool.roster.pickable) == 2)
                assert await asyncio.to_thread(calls, channel) == {"b", "c"}

    run(story())


def test_a_server_waits_for_no_watcher_of_its_health_when_it_leaves() -> None:
    async def story() -> None:
        async with site() as (made, _, _):
            assert made[0].unfinished == 0
            await asyncio.wait_for(made[0].leave(), 5.0)

    run(story())


def test_a_closed_channel_listens_no_more() -> None:
    async def story() -> None:
        async with MemoryStore() as store, servers(store) as made:
            before = asyncio.all_tasks()
            async with mesh.connect(SERVICE, store=store, settings=Settings()) as channel:
                await watched(channel, made)
            assert not [task for task in asyncio.all_tasks() - before if task.get_name() == "mesh health"]
            await until(lambda: not any(len(server._router.plumbing) for server in made))

    run(story())


# -- servers that are not of the mesh


class Told(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc_health ships no types
    """Says what a test has it say, then ends the stream with a code, or not at all."""

    def __init__(self, *says: int, ends: grpc.StatusCode | None = None) -> None:
        self.says, self.ends, self.asked = says, ends, list[str]()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked.append(request.service)
        says, ends = self.says, self.ends
        for status in says:
            yield Status(status=status)
        if ends is not None:
            await context.abort(ends, "enough")
        await asyncio.Event().wait()


@asynccontextmanager
async def listening(told: Told, *, ours: bool = False) -> AsyncIterator[tuple[HealthWatch, list[bool]]]:
    """Listen to a server that says this."""
    server, heard = aio.server(), list[bool]()
    health_pb2_grpc.add_HealthServicer_to_server(told, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = HealthWatch(channel, "t.Test", heard.append, CLOCK, DICE, ours=ours)
            yield watch, heard
            watch.close()
            await watch.ended()
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("status", "ours", "well"),
    [
        (Status.SERVING, False, True),
        (Status.NOT_SERVING, False, False),
        (Status.UNKNOWN, False, False),
        (Status.SERVICE_UNKNOWN, False, True),
        (Status.SERVICE_UNKNOWN, True, False),
    ],
)
def test_what_is_said_is_believed_but_that_a_stranger_knows_no_such_service(
    status: int, ours: bool, well: bool
) -> None:
    async def story() -> None:
        told = Told(status)
        async with listening(told, ours=ours) as (_, heard):
            await until(lambda: heard == [well])
            assert told.asked == ["t.Test"]

    run(story())


def test_a_server_that_implements_no_watch_is_asked_once() -> None:
    async def story() -> None:
        told = Told(ends=grpc.StatusCode.UNIMPLEMENTED)
        async with listening(told) as (watch, heard):
            await watch.ended()
            assert (heard, told.asked) == ([True], ["t.Test"])

    run(story())


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED])
def test_a_stream_that_ends_is_opened_again_and_its_end_says_nothing(code: grpc.StatusCode) -> None:
    async def story() -> None:
        told = Told(Status.NOT_SERVING, ends=code)
        async with listening(told) as (_, heard):
            await until(lambda: len(told.asked) >= 3)
            told.says, told.ends = (Status.SERVING,), None
            await until(lambda: True in heard)
            assert heard.index(True) == len(heard) - 1

    run(story())


@asynccontextmanager
async def plain(told: Told | None) -> AsyncIterator[tuple[str, aio.Server]]:
    server = aio.server()
    echo_pb2_grpc.add_EchoServiceServicer_to_server(EchoServicer("x"), server)
    if told is not None:
        health_pb2_grpc.add_HealthServicer_to_server(told, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", server
    await server.stop(0)


def test_what_was_said_is_forgotten_with_the_connection() -> None:
    async def story() -> None:
        told = Told(Status.NOT_SERVING)
        async with (
            plain(told) as (sick, _),
            plain(None) as (well, _),
            mesh.connect(SERVICE, endpoints=[sick, well]) as channel,
        ):
            roster = channel._pool.roster
            await until(lambda: [slot.name for slot in roster.pickable] == [well])
            slot = next(slot for slot in roster.slots if slot.name == sick)
            roster.connection_changed(slot, CLOCK.monotonic(), connected=False)
            assert slot.serving

    run(story())


def test_a_strange_server_that_leaves_gracefully_does_not_wait_for_our_watch() -> None:
    async def story() -> None:
        told = Told(Status.SERVING)
        async with plain(told) as (where, server), mesh.connect(SERVICE, endpoints=[where]):
            await until(lambda: told.asked)
            await asyncio.wait_for(server.stop(20.0), 5.0)

    run(story())
