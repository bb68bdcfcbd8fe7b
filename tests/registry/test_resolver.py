"""What listeners are told of services, over a store in memory and whatever is in it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping

import pytest
from prometheus_client import REGISTRY

from mesh.errors import InvalidName
from mesh.instance import Endpoint, Instance, State, View
from mesh.memory import MemoryStore
from mesh.registry import Resolver, record
from support.stories import no_tasks_left, until

SERVICE = "users.v1.UserService"


def instance(number: int, service: str = SERVICE, host: str = "127.0.0.1") -> Instance:
    return Instance(service, f"i{number}", Endpoint(host, 5000 + number))


async def put(store: MemoryStore, *instances: Instance) -> None:
    for one in instances:
        await store.put(record.instance_key("mesh", one), record.encode(one))


def skipped(reason: str) -> float:
    return REGISTRY.get_sample_value("mesh_registry_records_skipped_total", {"reason": reason}) or 0.0


def test_a_listener_is_told_at_once_then_when_known_then_at_each_change() -> None:
    async def story() -> None:
        store = MemoryStore()
        views: list[View] = []
        await put(store, instance(1))
        resolver = Resolver(store)
        resolver.subscribe(SERVICE, views.append)
        assert [v.known for v in views] == [False]
        await until(lambda: len(views) == 2)
        assert views[1].instances == (instance(1),)
        await put(store, instance(2))
        await until(lambda: len(views) == 3)
        assert views[2].instances == (instance(1), instance(2))
        await resolver.aclose()
        await no_tasks_left()

    asyncio.run(story())


def test_a_second_listener_gets_what_is_known_at_once() -> None:
    async def story() -> None:
        store = MemoryStore()
        await put(store, instance(1))
        resolver = Resolver(store)
        views: list[View] = []
        resolver.subscribe(SERVICE, views.append)
        await until(lambda: views[-1].known)
        late: list[View] = []
        resolver.subscribe(SERVICE, late.append)
        assert late == [views[-1]]
        await resolver.aclose()

    asyncio.run(story())


def test_equal_views_are_not_repeated() -> None:
    async def story() -> None:
        store = MemoryStore()
        await put(store, instance(1))
        resolver = Resolver(store)
        views: list[View] = []
        resolver.subscribe(SERVICE, views.append)
        await until(lambda: views[-1].known)
        await put(store, instance(1))  # a new revision, the same content
        await put(store, instance(2))
        await until(lambda: len(views[-1].instances) == 2)
        assert len(views) == 3
        await resolver.aclose()

    asyncio.run(story())


def test_a_closed_subscription_is_told_nothing_and_watches_nothing() -> None:
    async def story() -> None:
        store = MemoryStore()
        resolver = Resolver(store)
        views: list[View] = []
        subscription = resolver.subscribe(SERVICE, views.append)
        await until(lambda: views[-1].known)
        count = len(views)
        subscription.close()
        subscription.close()
        await put(store, instance(1))
        await no_tasks_left()
        assert len(views) == count
        await resolver.aclose()

    asyncio.run(story())


def test_a_listener_that_raises_harms_nobody() -> None:
    async def story() -> None:
        store = MemoryStore()
        resolver = Resolver(store)
        views: list[View] = []

        def bad(view: View) -> None:
            raise RuntimeError("listener")

        resolver.subscribe(SERVICE, bad)
        resolver.subscribe(SERVICE, views.append)
        await put(store, instance(1))
        await until(lambda: len(views[-1].instances) == 1)
        await resolver.aclose()

    asyncio.run(story())


def test_all_services_are_told_together_and_first_when_known() -> None:
    async def story() -> None:
        store = MemoryStore()
        told: list[Mapping[str, View]] = []
        resolver = Resolver(store)
        resolver.subscribe_all(told.append)
        assert told == []
        await until(lambda: told == [{}], what="known to be empty")
        await put(store, instance(1), instance(2, "orders.v1.OrderService"))
        await until(lambda: set(told[-1]) == {SERVICE, "orders.v1.OrderService"})
        await store.put(record.instance_key("mesh", instance(1)), record.encode(instance(1).with_state(State.DRAINING)))
        await store.delete(record.instance_key("mesh", instance(1)))
        await until(lambda: set(told[-1]) == {"orders.v1.OrderService"})
        await resolver.aclose()

    asyncio.run(story())


def test_views_are_kept_and_marked_stale_while_the_store_is_away() -> None:
    async def story() -> None:
        store = MemoryStore()
        await put(store, instance(1))
        resolver = Resolver(store.session())
        views: list[View] = []
        resolver.subscribe(SERVICE, views.append)
        await until(lambda: views[-1].known)
        store.away()
        await until(lambda: views[-1].stale, 3.0)
        assert views[-1].instances == (instance(1),)
        store.away(False)
        await until(lambda: not views[-1].stale, 3.0)
        await put(store, instance(2))
        await until(lambda: len(views[-1].instances) == 2)
        await resolver.aclose()

    asyncio.run(story())


def test_a_store_that_is_away_at_first_is_waited_for() -> None:
    async def story() -> None:
        store = MemoryStore()
        await put(store, instance(1))
        store.away()
        resolver = Resolver(store.session())
        views: list[View] = []
        resolver.subscribe(SERVICE, views.append)
        await asyncio.sleep(0.3)
        assert not views[-1].known
        store.away(False)
        await until(lambda: views[-1].known, 2.0)
        await resolver.aclose()

    asyncio.run(story())


def test_a_compaction_makes_it_list_again() -> None:
    async def story() -> None:
        store = MemoryStore()
        resolver = Resolver(store.session())
        views: list[View] = []
        resolver.subscribe(SERVICE, views.append)
        await until(lambda: views[-1].known)
        before = REGISTRY.get_sample_value("mesh_registry_compactions_total") or 0.0
        store.away()
        await put_behind(store, instance(1))
        store.compact()
        store.away(False)
        await until(lambda: views[-1].instances == (instance(1),), 1.0)
        assert REGISTRY.get_sample_value("mesh_registry_compactions_total") == before + 1
        await resolver.aclose()

    asyncio.run(story())


async def put_behind(store: MemoryStore, *instances: Instance) -> None:
    for one in instances:
        store._data.put(record.instance_key("mesh", one), record.encode(one), 0)


def test_poisoned_records_are_skipped_counted_once_and_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        store = MemoryStore()
        before = skipped("record")
        await put(store, instance(1))
        await store.put(f"mesh/services/{SERVICE}/poison", b"{")
        await store.put("mesh/services/../x", record.encode(instance(9)))
        views: list[View] = []
        told: list[Mapping[str, View]] = []
        resolver = Resolver(store)
        resolver.subscribe(SERVICE, views.append)
        await until(lambda: views[-1].instances == (instance(1),))
        assert skipped("record") == before + 1
        resolver.subscribe_all(told.append)
        await until(lambda: told and list(told[-1]) == [SERVICE])
        assert skipped("record") == before + 3
        await put(store, instance(2))
        await until(lambda: views[-1].instances == (instance(1), instance(2)))
        assert skipped("record") == before + 3
        assert sum("skipped the record" in r.message for r in caplog.records) == 3
        # Poison over a good one: that one goes, the others stay.
        await store.put(record.instance_key("mesh", instance(2)), b"\x00")
        await until(lambda: views[-1].instances == (instance(1),))
        await resolver.aclose()

    asyncio.run(story())


def test_instances_at_other_ports_of_the_allowed_networks_are_ignored() -> None:
    async def story() -> None:
        store = MemoryStore()
        await put(store, instance(1), instance(2))
        port = instance(1).endpoint.port
        assert instance(2).endpoint.port != port
        resolver = Resolver(store, networks=(f"127.0.0.0/8:{port}",))
        views: list[View] = []
        resolver.subscribe(SERVICE, views.append)
        await until(lambda: views[-1].known)
        assert views[-1].instances == (instance(1),)
        await resolver.aclose()

    asyncio.run(story())


def test_instances_outside_the_allowed_networks_are_ignored() -> None:
    async def story() -> None:
        store = MemoryStore()
        before = skipped("network")
        await put(store, instance(1), instance(2, host="10.1.2.3"), instance(3, host="admin.internal"))
        resolver = Resolver(store, networks=("127.0.0.0/8",))
        views: list[View] = []
        resolver.subscribe(SERVICE, views.append)
        await until(lambda: views[-1].known)
        assert views[-1].instances == (instance(1),)
        assert skipped("network") == before + 2
        await resolver.aclose()

    asyncio.run(story())


@pytest.mark.parametrize("name", ["", "a/b", "../users", "users.v1.", "users v1", "users.v1.UserService\n", "a..b"])
def test_a_name_that_is_no_service_is_refused(name: str) -> None:
    async def story() -> None:
        with pytest.raises(InvalidName):
            Resolver(MemoryStore()).subscribe(name, print)

    asyncio.run(story())


def test_contracts_are_found_by_content_and_forgeries_ignored() -> None:
    async def story() -> None:
        store = MemoryStore()
        resolver = Resolver(store)
        digest = hashlib.sha256(b"descriptors").hexdigest()
        assert await resolver.contract(digest) is None
        await store.put(record.contract_key("mesh", digest), b"forged")
        assert await resolver.contract(digest) is None
        await store.put(record.contract_key("mesh", digest), b"descriptors")
        assert await resolver.contract(digest) == b"descriptors"
        with pytest.raises(InvalidName):
            await resolver.contract("../../policies/x")
        await resolver.aclose()

    asyncio.run(story())


def test_policies_are_told() -> None:
    async def story() -> None:
        store = MemoryStore()
        told: list[Mapping[str, bytes]] = []
        resolver = Resolver(store)
        subscription = resolver.subscribe_policies(told.append)
        await until(lambda: told == [{}])
        await store.put(record.policy_key("mesh", SERVICE), b'{"timeout":"1s"}')
        await until(lambda: told[-1] == {SERVICE: b'{"timeout":"1s"}'})
        subscription.close()
        await resolver.aclose()
        await no_tasks_left()

    asyncio.run(story())
