"""Both stores keep the contract."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from contract.store import CHECKS, Bench
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint
from mesh.memory import MemoryStore
from mesh.store import Store
from support.etcd import Etcd

_numbers = itertools.count()


class MemoryBench:
    def __init__(self) -> None:
        self.prefix = f"check-{next(_numbers)}/"
        self.root = MemoryStore()
        self.stores: list[Store] = []

    def store(self) -> Store:
        self.stores.append(self.root.session())
        return self.stores[-1]

    async def revoke(self, lease: int) -> None:
        self.root.expire(lease)

    async def compact(self) -> None:
        self.root.compact()


class EtcdBench:
    def __init__(self, etcd: Etcd) -> None:
        self.prefix = f"check-{next(_numbers)}/"
        self.etcd = etcd
        self.stores: list[Store] = []

    def store(self) -> Store:
        self.stores.append(EtcdStore([Endpoint.parse(self.etcd.endpoint)]))
        return self.stores[-1]

    async def revoke(self, lease: int) -> None:
        await asyncio.to_thread(self.etcd.ctl, "lease", "revoke", f"{lease:x}")

    async def compact(self) -> None:
        revision = (await self.store().list("nothing/")).revision
        await asyncio.to_thread(self.etcd.ctl, "compact", str(revision))


def run(check: Callable[[Bench], Awaitable[None]], bench: MemoryBench | EtcdBench) -> None:
    async def story() -> None:
        try:
            await check(bench)
        finally:
            for store in bench.stores:
                await store.close()

    asyncio.run(story())


def name(check: Callable[[Bench], Awaitable[None]]) -> str:
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", CHECKS, ids=name)
def test_memory_store(check: Callable[[Bench], Awaitable[None]]) -> None:
    run(check, MemoryBench())


@pytest.mark.parametrize("check", CHECKS, ids=name)
def test_etcd_store(check: Callable[[Bench], Awaitable[None]], etcd: Etcd) -> None:
    run(check, EtcdBench(etcd))
