"""What a mirror tells: everything at first, then what changed; and everything again after whatever went wrong."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping

from mesh.memory import MemoryStore
from mesh.registry.mirror import Listener, Mirror
from mesh.store import Entry, Listing
from mesh.wallclock import CLOCK, DICE
from support.stories import no_tasks_left, until

Told = list[tuple[dict[str, bytes | None], bool]]


def noting(told: Told) -> Listener:
    def listener(entries: Mapping[str, Entry | None], whole: bool) -> None:
        told.append(({key: entry and entry.value for key, entry in entries.items()}, whole))

    return listener


def test_everything_is_told_once_and_then_what_changed() -> None:
    async def story() -> None:
        store, told = MemoryStore(), Told()
        await store.put("a/1", b"x")
        mirror = Mirror(store, "a/", noting(told), CLOCK, DICE)
        await until(lambda: told)
        await store.put("a/2", b"y")
        await until(lambda: len(told) == 2)
        await store.delete("a/1")
        await until(lambda: len(told) == 3)
        assert told == [({"a/1": b"x"}, True), ({"a/2": b"y"}, False), ({"a/1": None}, False)]
        await mirror.close()
        await no_tasks_left()

    asyncio.run(story())


def test_a_listener_that_stumbled_is_told_everything_again() -> None:
    async def story() -> None:
        store, told = MemoryStore(), Told()
        await store.put("a/1", b"x")

        def listener(entries: Mapping[str, Entry | None], whole: bool) -> None:
            noting(told)(entries, whole)
            if len(told) == 2:
                raise RuntimeError("once")

        mirror = Mirror(store, "a/", listener, CLOCK, DICE)
        await until(lambda: told)
        await store.put("a/2", b"y")
        await until(lambda: len(told) == 3)
        assert told[2] == ({"a/1": b"x", "a/2": b"y"}, True)
        await mirror.close()
        await no_tasks_left()

    asyncio.run(story())


def test_a_listing_is_let_go_once_it_is_told() -> None:
    class Entries(dict[str, Entry]):
        """One that can be referred to weakly."""

    class Store(MemoryStore):
        async def list(self, prefix: str) -> Listing:
            listing = await super().list(prefix)
            entries = Entries(listing.entries)
            listed.append(weakref.ref(entries))
            return Listing(entries, listing.revision)

    listed: list[weakref.ref[Entries]] = []

    async def story() -> None:
        told = Told()
        mirror = Mirror(Store(), "a/", noting(told), CLOCK, DICE)
        await until(lambda: told and listed[0]() is None)
        await mirror.close()

    asyncio.run(story())
