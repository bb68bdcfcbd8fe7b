"""What befalls etcd and the way to it, and that the store gets over it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mesh.errors import Compacted, StoreUnavailable
from mesh.etcd import EtcdStore
from mesh.etcd.watching import HUNG_AFTER
from mesh.instance import Endpoint
from mesh.store import Store
from support.etcd import Etcd, EtcdCluster
from support.proxy import Proxy
from support.stories import no_tasks_left, until


def store_at(*endpoints: str, user: str = "", password: str = "") -> EtcdStore:
    return EtcdStore([Endpoint.parse(e) for e in endpoints], user=user, password=password)


class Watcher:
    """Notes what a watch of "k/" tells."""

    def __init__(self, store: Store, after: int) -> None:
        self.values: list[bytes | None] = []
        self.error: BaseException | None = None
        self.task = asyncio.create_task(self._run(store, after))

    async def _run(self, store: Store, after: int) -> None:
        try:
            async for changed in store.watch("k/", after):
                self.values += [None if e is None else e.value for e in changed.changes.values()]
        except Exception as e:
            self.error = e

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def put_all(store: Store, values: Sequence[bytes], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    for value in values:
        while True:
            try:
                await store.put("k/a", value)
                break
            except StoreUnavailable:
                assert time.monotonic() < deadline, "etcd did not come back"
                await asyncio.sleep(0.05)


def test_a_watch_misses_nothing_over_a_killed_and_restarted_etcd(tmp_path: Path) -> None:
    async def story() -> None:
        with Etcd(tmp_path) as etcd:
            async with store_at(etcd.endpoint) as watching, store_at(etcd.endpoint) as writing:
                watcher = Watcher(watching, await writing.put("k/a", b"0"))
                await put_all(writing, [b"1", b"2"])
                for n in range(2):
                    await asyncio.to_thread(etcd.restart)
                    await put_all(writing, [b"r%d" % n])
                took = await until(lambda: len(watcher.values) == 4, 3.0, f"{watcher.values}")
                assert watcher.values == [b"1", b"2", b"r0", b"r1"]
                assert took < 3.0
                await watcher.stop()
            await no_tasks_left()

    asyncio.run(story())


def test_a_watch_whose_history_was_compacted_while_it_was_cut_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        with Etcd(tmp_path) as etcd:
            async with Proxy(etcd.endpoint) as proxy, store_at(proxy.endpoint) as far, store_at(etcd.endpoint) as near:
                watcher = Watcher(far, await near.put("k/a", b"0"))
                await put_all(near, [b"1"])
                await until(lambda: watcher.values == [b"1"])
                proxy.refuse = True
                proxy.cut()
                await put_all(near, [b"2", b"3"])
                revision = (await near.list("k/")).revision
                await asyncio.to_thread(etcd.ctl, "compact", str(revision))
                proxy.refuse = False
                await until(lambda: watcher.error is not None, 2.0, "told of the compaction")
                assert isinstance(watcher.error, Compacted)

    asyncio.run(story())


def test_an_etcd_that_lost_its_data_is_noticed(tmp_path: Path) -> None:
    async def story() -> None:
        with Etcd(tmp_path) as etcd:
            async with store_at(etcd.endpoint) as store:
                await put_all(store, [b"%d" % n for n in range(10)])
                watcher = Watcher(store, (await store.list("k/")).revision)
                await until(lambda: store.connected)
                etcd.wipe()
                await asyncio.to_thread(etcd.start)
                await until(lambda: watcher.error is not None, 3.0, "told that the history is another")
                assert isinstance(watcher.error, Compacted)

    asyncio.run(story())


def test_a_hung_member_is_left_for_another_within_8_seconds(tmp_path: Path) -> None:
    async def story() -> None:
        with EtcdCluster(tmp_path) as cluster:
            hung = next(m for m in cluster.members if m is not cluster.leader())
            others = [m for m in cluster.members if m is not hung]
            # The first address is the hung member's: that one is in use when it hangs.
            async with store_at(*cluster.endpoints) as store, store_at(others[0].endpoint) as near:
                await until_at(store, hung.endpoint)
                lease = await store.lease(10)
                lost = asyncio.create_task(lease.lost())
                await store.put("k/a", b"0", lease)
                watcher = Watcher(store, (await near.list("k/")).revision)
                await asyncio.sleep(1.0)  # let the watch be quiet, as most are
                hung.pause()
                begin = time.monotonic()
                await put_all(near, [b"1"])
                await until(lambda: watcher.values == [b"1"], 8.0, "the watch goes on at another member")
                took = time.monotonic() - begin
                begin = time.monotonic()
                await put_all(store, [b"2"])
                print(f"watch moved after {took:.1f} s, then a put took {time.monotonic() - begin:.3f} s")
                done, _ = await asyncio.wait([lost], timeout=max(0.0, 11.0 - took))
                assert not done, "the lease was lost"
                lost.cancel()
                await watcher.stop()
                hung.resume()

    asyncio.run(story())


async def until_at(store: EtcdStore, endpoint: str) -> None:
    """Make the store use a certain member, by failing it over until it does."""
    members = store._session._members
    members._at = members._endpoints.index(endpoint)
    await store.list("k/")


def test_a_killed_leader_costs_nothing_but_time(tmp_path: Path) -> None:
    async def story() -> None:
        with EtcdCluster(tmp_path) as cluster:
            async with store_at(*cluster.endpoints) as store:
                leader = cluster.leader()
                await until_at(store, leader.endpoint)
                watcher = Watcher(store, await store.put("k/a", b"0"))
                lease = await store.lease(5)
                await store.put("k/b", b"leased", lease)
                leader.kill()
                await put_all(store, [b"1"])
                await until(lambda: watcher.values == [b"leased", b"1"], 6.0, f"{watcher.values}")
                await asyncio.sleep(6.0)
                assert await store.get("k/b") is not None
                await watcher.stop()

    asyncio.run(story())


def test_a_keepalive_stream_broken_again_and_again_loses_no_lease(etcd: Etcd) -> None:
    async def story() -> None:
        async with Proxy(etcd.endpoint) as proxy, store_at(proxy.endpoint) as store:
            lease = await store.lease(2)
            lost = asyncio.create_task(lease.lost())
            open_before, tasks_before = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
            for _ in range(100):
                proxy.cut()
                await asyncio.sleep(0.1)
            assert not lost.done()
            await until(lambda: len(os.listdir("/proc/self/fd")) <= open_before + 4, what="descriptors are let go")
            await until(lambda: len(asyncio.all_tasks()) <= tasks_before + 8, what="tasks have ended")
            lost.cancel()
            assert proxy.accepted > 20

    asyncio.run(story())


def test_a_slow_etcd_loses_no_lease_and_breaks_no_watch(etcd: Etcd) -> None:
    async def story() -> None:
        async with Proxy(etcd.endpoint) as proxy, store_at(proxy.endpoint) as store:
            lease = await store.lease(10)
            lost = asyncio.create_task(lease.lost())
            watcher = Watcher(store, await store.put("k/slow", b"0", lease))
            await until(lambda: store.connected)
            before = breaks()
            proxy.latency = 1.0  # 2 s there and back
            await asyncio.sleep(13.0)
            assert not lost.done()
            assert breaks() == before
            proxy.latency = 0.0
            lost.cancel()
            await watcher.stop()
            await lease.revoke()

    asyncio.run(story())


def test_a_quiet_watch_is_not_taken_for_a_hung_member(etcd: Etcd) -> None:
    async def story() -> None:
        async with store_at(etcd.endpoint) as store:
            watcher = Watcher(store, await store.put("k/quiet", b"0"))
            before = breaks()
            await asyncio.sleep(HUNG_AFTER + 3.0)
            assert breaks() == before
            await watcher.stop()

    asyncio.run(story())


def breaks() -> float:
    names = ("silent", "broken", "token")
    return sum(REGISTRY.get_sample_value("mesh_registry_watch_breaks_total", {"reason": n}) or 0.0 for n in names)


def test_a_black_hole_before_the_only_member_is_survived(etcd: Etcd) -> None:
    async def story() -> None:
        async with Proxy(etcd.endpoint) as proxy, store_at(proxy.endpoint) as far, store_at(etcd.endpoint) as near:
            watcher = Watcher(far, await near.put("k/hole", b"0"))
            await until(lambda: far.connected)
            proxy.swallow = True
            await until(lambda: not far.connected, 8.0, "the hole is noticed")
            await near.put("k/hole", b"1")
            with pytest.raises(StoreUnavailable):
                await far.list("k/")
            proxy.swallow = False
            proxy.cut()
            await until(lambda: watcher.values == [b"1"], 6.0, "the watch goes on")
            await watcher.stop()

    asyncio.run(story())
