"""What every `mesh.store.Store` promises. Each `check_…` is one promise; `CHECKS` is all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest

from mesh.errors import Compacted, LeaseLost
from mesh.store import Changed, Entry, Store

SOON = 5.0


class Bench(Protocol):
    """A kind of store on the bench."""

    prefix: str
    """Keys of this check begin so; nobody else's do."""

    def store(self) -> Store:
        """Return another party's store over the same data. The bench closes it."""
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease behind its holder's back, as an operator does."""
        ...

    async def compact(self) -> None:
        """Forget all history."""
        ...


async def check_a_put_key_is_there_with_its_value(bench: Bench) -> None:
    store, key = bench.store(), f"{bench.prefix}a"
    revision = await store.put(key, b"\x00\xffvalue")
    entry = await bench.store().get(key)
    assert entry is not None
    assert (entry.key, entry.value, entry.lease, entry.mod_revision) == (key, b"\x00\xffvalue", 0, revision)


async def check_an_absent_key_is_none(bench: Bench) -> None:
    assert await bench.store().get(f"{bench.prefix}nothing") is None


async def check_a_listing_has_the_prefix_and_nothing_else(bench: Bench) -> None:
    store = bench.store()
    for name in ("s/1", "s/2", "s", "t/1", "s0"):
        await store.put(f"{bench.prefix}{name}", name.encode())
    listing = await store.list(f"{bench.prefix}s/")
    assert {key.removeprefix(bench.prefix): e.value for key, e in listing.entries.items()} == {
        "s/1": b"s/1",
        "s/2": b"s/2",
    }


async def check_the_revision_of_a_listing_includes_what_it_shows(bench: Bench) -> None:
    store = bench.store()
    revision = await store.put(f"{bench.prefix}a", b"1")
    listing = await store.list(bench.prefix)
    assert listing.revision >= revision


async def check_put_if_absent_never_overwrites(bench: Bench) -> None:
    store, key = bench.store(), f"{bench.prefix}a"
    assert await store.put_if_absent(key, b"first")
    assert not await store.put_if_absent(key, b"second")
    entry = await store.get(key)
    assert entry is not None
    assert entry.value == b"first"


async def check_of_many_at_once_only_one_puts_an_absent_key(bench: Bench) -> None:
    stores = [bench.store() for _ in range(5)]
    won = await asyncio.gather(*(s.put_if_absent(f"{bench.prefix}a", b"%d" % n) for n, s in enumerate(stores)))
    assert sorted(won) == [False] * 4 + [True]


async def check_a_deleted_key_is_gone_once(bench: Bench) -> None:
    store, key = bench.store(), f"{bench.prefix}a"
    await store.put(key, b"1")
    assert await store.delete(key)
    assert not await store.delete(key)
    assert await store.get(key) is None


async def check_revoking_a_lease_deletes_its_keys_and_no_others(bench: Bench) -> None:
    store = bench.store()
    lease = await store.lease(5)
    await store.put(f"{bench.prefix}a", b"1", lease)
    await store.put(f"{bench.prefix}b", b"1")
    entry = await store.get(f"{bench.prefix}a")
    assert entry is not None
    assert entry.lease == lease.id
    await lease.revoke()
    assert list((await store.list(bench.prefix)).entries) == [f"{bench.prefix}b"]


async def check_revoking_twice_is_silent(bench: Bench) -> None:
    lease = await bench.store().lease(5)
    await lease.revoke()
    await lease.revoke()


async def check_nothing_can_be_put_under_an_ended_lease(bench: Bench) -> None:
    store = bench.store()
    lease = await store.lease(5)
    await lease.revoke()
    with pytest.raises(LeaseLost):
        await store.put(f"{bench.prefix}a", b"1", lease)
    with pytest.raises(LeaseLost):
        await store.put_if_absent(f"{bench.prefix}a", b"1", lease)


async def check_a_lease_outlives_its_ttl_while_its_holder_lives(bench: Bench) -> None:
    store = bench.store()
    lease = await store.lease(2)
    await store.put(f"{bench.prefix}a", b"1", lease)
    lost = asyncio.create_task(lease.lost())
    done, _ = await asyncio.wait([lost], timeout=lease.ttl + 1.5)
    assert not done
    assert await bench.store().get(f"{bench.prefix}a") is not None
    lost.cancel()


async def check_a_lease_ends_after_its_holder_closed(bench: Bench) -> None:
    holder, other = bench.store(), bench.store()
    lease = await holder.lease(2)
    await holder.put(f"{bench.prefix}a", b"1", lease)
    listing = await other.list(bench.prefix)
    await holder.close()
    async with asyncio.timeout(lease.ttl + 2 + SOON):
        changed = await _first(other.watch(bench.prefix, listing.revision))
    assert changed.changes == {f"{bench.prefix}a": None}


async def check_a_lease_revoked_by_somebody_else_is_told(bench: Bench) -> None:
    lease = await bench.store().lease(3)
    await bench.revoke(lease.id)
    async with asyncio.timeout(lease.ttl / 3 + 1 + SOON):
        await lease.lost()


async def check_our_own_revocation_is_no_loss(bench: Bench) -> None:
    lease = await bench.store().lease(2)
    lost = asyncio.create_task(lease.lost())
    await lease.revoke()
    done, _ = await asyncio.wait([lost], timeout=1.0)
    assert not done
    lost.cancel()


async def check_a_watch_tells_every_change_after_its_revision_in_order(bench: Bench) -> None:
    store = bench.store()
    await store.put(f"{bench.prefix}before", b"0")
    revision = (await store.list(bench.prefix)).revision
    for n in range(20):
        await store.put(f"{bench.prefix}k", b"%d" % n)
    watch = bench.store().watch(bench.prefix, revision)
    values = [entry.value for entry in await _entries(watch, 20) if entry is not None]
    assert values == [b"%d" % n for n in range(20)]


async def check_a_watch_tells_deletions(bench: Bench) -> None:
    store = bench.store()
    revision = await store.put(f"{bench.prefix}a", b"1")
    await store.delete(f"{bench.prefix}a")
    changed = await _first(bench.store().watch(bench.prefix, revision))
    assert changed.changes == {f"{bench.prefix}a": None}
    assert changed.revision == revision + 1


async def check_a_watch_tells_a_goodbye_before_the_end(bench: Bench) -> None:
    store, key = bench.store(), f"{bench.prefix}a"
    revision = await store.put(key, b"ready")
    await store.put(key, b"draining")
    await store.delete(key)
    seen = await _entries(bench.store().watch(bench.prefix, revision), 2)
    assert [None if entry is None else entry.value for entry in seen] == [b"draining", None]


async def check_a_watch_is_silent_about_other_prefixes(bench: Bench) -> None:
    store = bench.store()
    revision = await store.put(f"{bench.prefix}x/1", b"1")
    await store.put(f"{bench.prefix}y/1", b"1")
    await store.put(f"{bench.prefix}x/2", b"1")
    changed = await _first(bench.store().watch(f"{bench.prefix}x/", revision))
    assert list(changed.changes) == [f"{bench.prefix}x/2"]


async def check_a_watch_from_compacted_history_says_so(bench: Bench) -> None:
    store = bench.store()
    revision = await store.put(f"{bench.prefix}a", b"1")
    await store.put(f"{bench.prefix}a", b"2")
    await store.put(f"{bench.prefix}a", b"3")
    await bench.compact()
    with pytest.raises(Compacted):
        await _first(store.watch(bench.prefix, revision))


async def check_connected_after_a_good_exchange(bench: Bench) -> None:
    store = bench.store()
    await store.list(bench.prefix)
    assert store.connected


async def _first(watch: AsyncIterator[Changed]) -> Changed:
    """Return the first change, skipping signs of life."""
    async with asyncio.timeout(SOON + 5):
        async for changed in watch:
            if changed.changes:
                return changed
    raise AssertionError("the watch ended")


async def _entries(watch: AsyncIterator[Changed], count: int) -> list[Entry | None]:
    seen: list[Entry | None] = []
    async with asyncio.timeout(SOON):
        async for changed in watch:
            seen.extend(changed.changes.values())
            if len(seen) >= count:
                break
    return seen


CHECKS: list[Callable[[Bench], Awaitable[None]]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
