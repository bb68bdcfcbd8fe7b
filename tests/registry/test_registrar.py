"""An instance stays known, whatever happens to its registration."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from prometheus_client import REGISTRY

from mesh.errors import DuplicateInstance, InvalidName
from mesh.instance import Endpoint, Instance, State
from mesh.memory import MemoryStore
from mesh.registry import Registrar, record
from support.stories import no_tasks_left, until

SERVICE = "users.v1.UserService"


def instance(number: int = 1, port: int = 5000, service: str = SERVICE) -> Instance:
    return Instance(service, f"i{number}", Endpoint("127.0.0.1", port))


def shown(store: MemoryStore) -> dict[str, Instance]:
    return {
        key.rpartition("/")[2]: record.decode(key, e.value, "mesh")
        for key, e in store._data.entries.items()
        if key.startswith("mesh/services/")
    }


def test_after_start_the_instance_and_its_contract_are_there() -> None:
    async def story() -> None:
        store = MemoryStore()
        registrar = Registrar(store.session(), [instance()], contract=b"descriptors")
        await registrar.start()
        assert registrar.registered
        assert shown(store) == {"i1": instance()}
        assert b"descriptors" in [
            e.value for key, e in store._data.entries.items() if key.startswith("mesh/contracts/")
        ]
        assert REGISTRY.get_sample_value("mesh_registry_registered", {"service": SERVICE}) == 1.0
        await registrar.leave()
        assert shown(store) == {}
        assert not registrar.registered
        await no_tasks_left()

    asyncio.run(story())


def test_all_services_of_a_process_share_one_lease() -> None:
    async def story() -> None:
        store = MemoryStore()
        registrar = Registrar(store, [instance(), instance(service="orders.v1.OrderService")])
        await registrar.start()
        entries = (await store.list("mesh/services/")).entries.values()
        assert len(entries) == 2
        assert len({e.lease for e in entries}) == 1
        await registrar.leave()

    asyncio.run(story())


def test_a_new_state_is_told_and_stays_told_over_a_lost_lease() -> None:
    async def story() -> None:
        store = MemoryStore()
        registrar = Registrar(store, [instance()])
        await registrar.start()
        assert await registrar.set_state(State.PAUSED)
        assert shown(store)["i1"].state is State.PAUSED
        store.expire(1)
        assert shown(store) == {}
        await until(lambda: shown(store), 1.0)
        assert shown(store)["i1"].state is State.PAUSED
        await registrar.leave()

    asyncio.run(story())


@pytest.mark.parametrize("harm", ["delete", "overwrite", "expire"])
def test_a_harmed_registration_is_back_within_a_second(harm: str) -> None:
    async def story() -> None:
        store = MemoryStore()
        registrar = Registrar(store.session(), [instance()])
        await registrar.start()
        key = record.instance_key("mesh", instance())
        for _ in range(3):
            if harm == "delete":
                await store.delete(key)
            elif harm == "overwrite":
                await store.put(key, b"poison")
            else:
                store.expire(store._data.granted)
            await asyncio.sleep(0)
            await until(lambda: store._data.entries.get(key) and shown_or_none(store) == {"i1": instance()}, 1.0)
            entry = await store.get(key)
            assert entry is not None
            assert entry.lease == store._data.granted
        await registrar.leave()

    asyncio.run(story())


def shown_or_none(store: MemoryStore) -> dict[str, Instance] | None:
    try:
        return shown(store)
    except ValueError:
        return None


def test_a_store_that_is_away_is_tried_for_ever() -> None:
    async def story() -> None:
        store = MemoryStore()
        store.away()
        registrar = Registrar(store.session(), [instance()])
        await registrar.start(wait=False)
        await asyncio.sleep(1.0)
        assert not registrar.registered
        store.away(False)
        await until(lambda: registrar.registered, 2.0)
        await registrar.leave()

    asyncio.run(story())


def test_leaving_while_the_store_is_away_takes_no_longer_than_promised() -> None:
    async def story() -> None:
        store = MemoryStore()
        registrar = Registrar(store.session(), [instance()])
        await registrar.start()
        store.away()
        begin = time.monotonic()
        assert not await registrar.set_state(State.DRAINING)
        await registrar.leave()
        assert time.monotonic() - begin < 7.0
        await no_tasks_left()

    asyncio.run(story())


def test_a_state_that_could_not_be_told_is_told_later() -> None:
    async def story() -> None:
        store = MemoryStore()
        registrar = Registrar(store.session(), [instance()])
        await registrar.start()
        store.away()
        assert not await registrar.set_state(State.PAUSED)
        store.away(False)
        await until(lambda: shown(store)["i1"].state is State.PAUSED, 2.0)
        await registrar.leave()

    asyncio.run(story())


def test_an_id_taken_by_a_living_process_is_refused_in_one_sentence() -> None:
    async def story() -> None:
        store = MemoryStore()
        with socket.create_server(("127.0.0.1", 0)) as server:
            first = Registrar(store.session(), [instance(port=server.getsockname()[1])], ttl=0.5)
            await first.start()
            second = Registrar(store.session(), [instance(port=5001)], ttl=0.5)
            with pytest.raises(DuplicateInstance, match=r"taken by another process at 127\.0\.0\.1.*MESH_INSTANCE_ID"):
                await second.start()
            assert first.registered
            assert shown(store)["i1"].endpoint.port == server.getsockname()[1]
            await first.leave()
        await no_tasks_left()

    asyncio.run(story())


def test_an_id_of_a_dead_process_is_taken_over_at_once() -> None:
    async def story() -> None:
        store = MemoryStore()
        with socket.create_server(("127.0.0.1", 0)) as server:
            dead = instance(port=server.getsockname()[1])
        lease = await store.lease(10)
        await store.put(record.instance_key("mesh", dead), record.encode(dead), lease)
        registrar = Registrar(store.session(), [instance(port=5001)])
        begin = time.monotonic()
        await registrar.start()
        assert time.monotonic() - begin < 1.0
        assert shown(store)["i1"].endpoint.port == 5001
        await registrar.leave()

    asyncio.run(story())


def test_our_former_life_at_the_same_address_is_taken_over_at_once() -> None:
    async def story() -> None:
        store = MemoryStore()
        with socket.create_server(("127.0.0.1", 0)) as server:
            mine = instance(port=server.getsockname()[1])
            lease = await store.lease(10)
            await store.put(record.instance_key("mesh", mine), record.encode(mine), lease)
            registrar = Registrar(store.session(), [mine])
            await registrar.start()
            store.expire(lease.id)  # the old lease ends, the key is under the new one
            assert shown(store) == {"i1": mine}
            await registrar.leave()

    asyncio.run(story())


@pytest.mark.parametrize(("service", "number"), [("", "a"), ("a/b", "a"), ("users.v1.U", ""), ("users.v1.U", "a/b")])
def test_names_that_are_no_names_are_refused(service: str, number: str) -> None:
    with pytest.raises(InvalidName):
        Registrar(MemoryStore(), [Instance(service, number, Endpoint("127.0.0.1", 1))])
