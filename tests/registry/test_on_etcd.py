"""Registrars and resolvers over a real etcd, and what befalls it."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from pathlib import Path

import pytest

from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, Instance, View
from mesh.registry import Registrar, Resolver, record
from support.etcd import Etcd
from support.proxy import Proxy
from support.stories import no_tasks_left, until

SERVICE = "users.v1.UserService"


class Party:
    """A few instances, each with a store of its own as separate processes have, and one that looks at them."""

    def __init__(self, endpoint: str, count: int = 3, ttl: float = 2.0) -> None:
        self.prefix = f"mesh-{uuid.uuid4().hex[:8]}"
        self.endpoint = endpoint
        self.instances = [Instance(SERVICE, f"i{n:02}", Endpoint("127.0.0.1", 5000 + n)) for n in range(count)]
        self.stores = [self.store() for _ in self.instances]
        self.registrars = [
            Registrar(store, [one], prefix=self.prefix, ttl=ttl, contract=b"descriptors")
            for store, one in zip(self.stores, self.instances, strict=True)
        ]
        self.watching = self.store()
        self.resolver = Resolver(self.watching, self.prefix)
        self.views: list[View] = []

    def store(self) -> EtcdStore:
        return EtcdStore([Endpoint.parse(self.endpoint)])

    async def __aenter__(self) -> Party:
        self.resolver.subscribe(SERVICE, self.views.append)
        await asyncio.gather(*(r.start() for r in self.registrars))
        await until(self.is_whole, what="all are seen")
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(r.leave() for r in self.registrars))
        await self.resolver.aclose()
        for store in [*self.stores, self.watching]:
            await store.close()
        await no_tasks_left()

    def is_whole(self) -> bool:
        """Whether the view is fresh and has all of them."""
        return not self.views[-1].stale and self.views[-1].instances == tuple(self.instances)

    async def are_in_store(self) -> bool:
        """Whether the store has all of them, each under a lease."""
        async with self.store() as store:
            entries = (await store.list(record.service_prefix(self.prefix, SERVICE))).entries.values()
        return sorted(e.key.rpartition("/")[2] for e in entries) == [i.id for i in self.instances] and all(
            e.lease for e in entries
        )


@pytest.mark.alone
def test_a_registration_is_seen_within_ten_milliseconds(etcd: Etcd) -> None:
    async def story() -> None:
        async with Party(etcd.endpoint) as party:
            seen_at: list[float] = []
            party.resolver.subscribe(SERVICE, lambda _: seen_at.append(time.perf_counter()))
            took = []
            for n in range(30):
                one = Instance(SERVICE, f"x{n}", Endpoint("127.0.0.1", 6000 + n))
                count = len(seen_at)
                begin = time.perf_counter()
                await party.stores[0].put(record.instance_key(party.prefix, one), record.encode(one))
                await until(lambda count=count: len(seen_at) > count)  # type: ignore[misc]  # mypy infers no lambda
                took.append((seen_at[count] - begin) * 1000)
            print(f"put to view: median {statistics.median(took):.1f} ms, worst {max(took):.1f} ms")
            assert statistics.median(took) < 10.0

    asyncio.run(story())


def test_a_revoked_lease_and_a_deleted_key_are_mended_within_a_second(etcd: Etcd) -> None:
    async def story() -> None:
        async with Party(etcd.endpoint) as party:
            for number in range(2):
                entry = await party.watching.get(record.instance_key(party.prefix, party.instances[number]))
                assert entry is not None
                await asyncio.to_thread(etcd.ctl, "lease", "revoke", f"{entry.lease:x}")
                await until_async(party.are_in_store, 1.0 + 2.0 / 3, "revoked")
            await party.watching.delete(record.instance_key(party.prefix, party.instances[2]))
            await until_async(party.are_in_store, 1.0, "deleted")
            await until(party.is_whole)

    asyncio.run(story())


def test_a_deleted_prefix_empties_no_view_and_is_mended(etcd: Etcd) -> None:
    async def story() -> None:
        async with Party(etcd.endpoint) as party:
            count = len(party.views)
            await asyncio.to_thread(etcd.ctl, "del", "--prefix", f"{party.prefix}/")
            await until_async(party.are_in_store, 1.5, "registered again")
            await until(party.is_whole, 2.0)
            assert all(v.instances == tuple(party.instances) for v in party.views[count:])
            contracts = await party.watching.list(f"{party.prefix}/contracts/")
            assert len(contracts.entries) == 1

    asyncio.run(story())


def test_etcd_down_for_longer_than_the_leases_empties_no_view_and_all_are_back_in_two_seconds(tmp_path: Path) -> None:
    async def story() -> None:
        with Etcd(tmp_path) as etcd:
            async with Party(etcd.endpoint, count=10) as party:
                count = len(party.views)
                etcd.kill()
                await until(lambda: party.views[-1].stale, 3.0)
                await until(lambda: not any(r.registered for r in party.registrars), 8.0, "leases are over")
                await asyncio.to_thread(etcd.start)
                took = await until(lambda: all(r.registered for r in party.registrars), 2.0, "all registered again")
                await until(party.is_whole, 2.0)
                print(f"all registered {took:.2f} s after etcd was ready")
                assert all(v.instances == tuple(party.instances) for v in party.views[count:])
                # The leases of before the outage end now and must take nothing with them.
                await asyncio.sleep(4.0)
                assert await party.are_in_store()
                assert all(v.instances == tuple(party.instances) for v in party.views[count:])

    asyncio.run(story())


def test_an_etcd_that_comes_back_empty_empties_no_view_and_is_filled_again(tmp_path: Path) -> None:
    async def story() -> None:
        with Etcd(tmp_path) as etcd:
            async with Party(etcd.endpoint) as party:
                count = len(party.views)
                etcd.wipe()
                await asyncio.to_thread(etcd.start)
                await until_async(party.are_in_store, 3.0, "registered again")
                await until(party.is_whole, 3.0)
                assert all(v.instances == tuple(party.instances) for v in party.views[count:])

    asyncio.run(story())


def test_a_holder_that_was_paused_past_its_lease_registers_again(etcd: Etcd) -> None:
    async def story() -> None:
        async with Proxy(etcd.endpoint) as proxy, Party(proxy.endpoint, count=1) as party:
            proxy.swallow = True
            await asyncio.sleep(4.5)  # the lease of two seconds ends at etcd
            proxy.swallow = False
            proxy.cut()
            await until_async(lambda: is_there(etcd, party), 2.0, "registered again")

    asyncio.run(story())


async def is_there(etcd: Etcd, party: Party) -> bool:
    async with EtcdStore([Endpoint.parse(etcd.endpoint)]) as store:
        return await store.get(record.instance_key(party.prefix, party.instances[0])) is not None


def test_a_killed_instance_is_gone_when_its_lease_is(etcd: Etcd) -> None:
    async def story() -> None:
        async with Party(etcd.endpoint) as party:
            begin = time.monotonic()
            party.registrars[0]._task.cancel()  # type: ignore[union-attr]  # it runs: the party is started
            for mirror in party.registrars[0]._mirrors:
                await mirror.close()
            await party.stores[0].close()
            await until(lambda: len(party.views[-1].instances) == 2, 5.0)
            assert time.monotonic() - begin < 2.0 + 1.0 + 1.0

    asyncio.run(story())


async def until_async(condition, within: float, what: str) -> None:  # type: ignore[no-untyped-def]  # any async question
    begin = time.monotonic()
    while not await condition():
        assert time.monotonic() - begin < within, f"not within {within:g} s: {what}"
        await asyncio.sleep(0.02)
