"""Durable writes by 64 callers at once: as the stores do them, and with one commit per call beside it."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.arms.client import Arms
from bench.measure import Arm
from users.v1.users_pb2 import User
from usersvc import sql
from usersvc.database import open_store
from usersvc.sqlite import SqliteStore
from usersvc.sqlite_turn import Turn
from usersvc.sqlite_writer import Writer
from usersvc.store import UserStore
from usersvc.writes import Create

AT_ONCE = 64
# One count for all arms of a process: they may share a database, which keeps what processes before have written.
_IDS = itertools.count(time.time_ns())


class Single(Writer):
    """The same writer, but every job has a transaction and a commit of its own, right after the one before."""

    def _take(self, *, block: bool, room: int = 1) -> tuple[list[Any], bool]:
        return super()._take(block=True, room=1) if block else ([], False)


async def one_by_one(path: Path) -> SqliteStore:
    """Open the store with such a writer."""
    store = await SqliteStore.open(path)
    await store._writer.close()
    store._writer = Single(store._connect, Turn(path))
    return store


def at_once(create: Callable[[int], Awaitable[object]]) -> Callable[[int], Any]:
    """Return what creates users by this, 64 at once; it is given a number that no other user has."""

    async def run(count: int) -> None:
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                await create(next(_IDS))

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    return run


def creates(store: UserStore) -> Callable[[int], Any]:
    """Return what creates users in a store."""
    return at_once(lambda n: store.write(Create(User(id=f"u{n}", name="Ada", email=f"{n}@example.org"))))


@asynccontextmanager
async def reads(job: Mapping[str, Any]) -> AsyncIterator[Arms]:
    """A warm point read by a thread, and right in the loop."""
    with tempfile.TemporaryDirectory(dir=job["folder"]) as home:
        store = await SqliteStore.open(Path(home, "users.db"))
        await store.write(Create(User(id="ada", name="Ada", email="ada@example.org")))

        async def by_thread(calls: int) -> None:
            for _ in range(calls):
                await store._read(lambda c: c.execute(sql.GET, ("ada",)).fetchall(), near=False)

        async def in_loop(calls: int) -> None:
            for _ in range(calls):
                await store.get("ada")

        yield Arm(by_thread), {"mesh": Arm(in_loop)}
        await store.close()


@asynccontextmanager
async def sqlite(job: Mapping[str, Any]) -> AsyncIterator[Arms]:
    """One commit per call, and commits that hold whatever waits."""
    with tempfile.TemporaryDirectory(dir=job["folder"]) as home:
        alone, ours = await one_by_one(Path(home, "alone.db")), await SqliteStore.open(Path(home, "users.db"))
        yield Arm(creates(alone), wall=True), {"mesh": Arm(creates(ours), wall=True)}
        await alone.close()
        await ours.close()


@asynccontextmanager
async def postgres(job: Mapping[str, Any]) -> AsyncIterator[Arms]:
    """One INSERT and its commit per call by hand, and the store's writes, over as many connections."""
    # Here and not above: they need not be installed for SQLite.
    import asyncpg

    from usersvc.postgres import CONNECTIONS

    async with asyncpg.create_pool(job["url"], min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        await pool.execute(_TABLE)

        async def insert(n: int) -> None:
            await pool.execute("INSERT INTO by_hand VALUES ($1, $2, $3)", f"u{n}", "Ada", f"{n}@example.org")

        store = await open_store(job["url"])
        yield Arm(at_once(insert), wall=True), {"mesh": Arm(creates(store), wall=True)}
        await store.close()


_TABLE = "CREATE TABLE IF NOT EXISTS by_hand (id text PRIMARY KEY, name text NOT NULL, email text NOT NULL UNIQUE)"
