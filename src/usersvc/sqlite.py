"""Users in a SQLite file: one machine, any number of processes, nothing to start.

Writes go through `usersvc.sqlite_writer`. Small reads run right in the event loop: a warm point read costs 10 µs of
CPU, by a thread 80 to 100 (`python -m bench users.read`). In WAL mode readers wait for nobody; in the rare moment when
one would have to (a recovery after a crash), the read is moved to a thread that waits.

What SQLite cannot do: take its lock from a process that was stopped (SIGSTOP) within the millisecond or two of a
transaction. Until it goes on or is killed, others can read but not write. PostgreSQL gets over it in two seconds.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from mesh.clock import Clock
from mesh.wallclock import CLOCK
from users.v1.users_pb2 import User
from usersvc import sql
from usersvc.sqlite_schema import connect, failure, is_broken, is_busy, prepare
from usersvc.sqlite_turn import Turn
from usersvc.sqlite_writer import Writer
from usersvc.store import Change, ChangesForgotten, Retention
from usersvc.writes import Write, decide

T = TypeVar("T")
Read = Callable[[sqlite3.Connection], T]

NEAR = 64  # rows: a read of at most so many runs in the loop, some 0.2 ms
_PATIENCE = 1000  # milliseconds that a reader thread waits for a lock
_READERS = 2  # threads


class SqliteStore:
    """Users in a file. One event loop owns it.

    `_near` is the loop's own connection; `_far` holds one for each reader thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock = CLOCK,
        retention: Retention = Retention(),  # noqa: B008  frozen value
        synchronous: str = "FULL",
        max_pages: int = 0,
    ) -> None:
        self._clock = clock
        self._retention = retention
        self._connect = partial(connect, path, synchronous=synchronous, max_pages=max_pages)
        self._near = self._connect()
        self._far = threading.local()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="usersvc-reader")
        self._writer = Writer(self._connect, Turn(path))
        self.key: bytes = self._near.execute(sql.TOKEN_KEY).fetchone()[0]

    @classmethod
    async def open(cls, path: Path, **options: Any) -> Self:
        """Open the file, made and migrated as needed; raise OpenFailed with one sentence if that cannot be done."""
        await asyncio.to_thread(prepare, path)
        return cls(path, **options)

    async def get(self, id: str) -> User | None:
        """Return the user of this id, or None."""
        rows = await self._read(lambda c: c.execute(sql.GET, (id,)).fetchall())
        return sql.user_of(rows[0]) if rows else None

    async def get_many(self, ids: Sequence[str]) -> Mapping[str, User]:
        """Return those of the users that exist, by id."""
        rows = await self._rows(len(ids), sql.MANY_SQLITE, (json.dumps(list(ids)),))
        return {row[0]: sql.user_of(row) for row in rows}

    async def page(self, after: str, limit: int) -> Sequence[User]:
        """Return the first users after an id."""
        return [sql.user_of(row) for row in await self._rows(limit, sql.PAGE, (after, limit))]

    async def write(self, write: Write) -> bytes:
        """Do a write in one durable transaction and return its answer."""
        return await self._writer.do(partial(self._write, write))

    def _write(self, write: Write, connection: sqlite3.Connection) -> bytes:
        now = int(self._clock.time() * 1_000_000)
        facts = sql.facts_of(connection.execute(*sql.wanted(write, now)).fetchone())
        decision = decide(write, facts, now)
        for statement in sql.effects(write, decision, now, self._retention):
            connection.execute(*statement)
        return decision.answer

    async def head(self) -> int:
        """Return the sequence of the last change."""
        head: int = (await self._rows(1, sql.HEAD, ()))[0][0]
        return head

    async def changes(self, after: int, limit: int) -> Sequence[Change]:
        """Return the first changes after a sequence."""
        rows = await self._rows(limit, sql.CHANGES, (after, limit))
        # Asked after the rows were read: what was pruned in between shows.
        ((forgotten,),) = await self._rows(1, sql.FORGOTTEN, ())
        if after < forgotten or (not rows and after > await self.head()):
            raise ChangesForgotten("the changes asked for are gone")
        return [sql.change_of(row) for row in rows]

    async def prune(self) -> None:
        """Forget what is past its retention, a portion at a time."""
        now = int(self._clock.time() * 1_000_000)
        oldest = now - int(self._retention.changes * 1_000_000)
        await self._writer.do(lambda c: c.execute(sql.FORGET, (oldest, self._retention.change_rows)).rowcount)
        for statement, values in ((sql.PRUNE_CHANGES, ()), (sql.PRUNE_REQUESTS, (now,))):
            portion = partial(_count, statement, values)
            while await self._writer.do(portion) == sql.PORTION:
                pass

    async def close(self) -> None:
        """Finish the writes that were begun, and close the file."""
        await self._writer.close()
        await asyncio.to_thread(self._readers.shutdown)
        self._near.close()

    async def _rows(self, limit: int, statement: str, values: Sequence[Any]) -> list[Any]:
        return await self._read(lambda c: c.execute(statement, values).fetchall(), near=limit <= NEAR)

    async def _read(self, read: Read[T], *, near: bool = True) -> T:
        try:
            if near:
                return read(self._near)
        except sqlite3.Error as e:
            if is_broken(e):
                self._near = self._connect()
            if not is_busy(e):
                raise failure(e) from e
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read_far, read)

    def _read_far(self, read: Read[T]) -> T:
        try:
            if not hasattr(self._far, "connection"):
                self._far.connection = self._connect(busy=_PATIENCE)
            return read(self._far.connection)
        except sqlite3.Error as e:
            if is_broken(e):
                del self._far.connection
            raise failure(e) from e


def _count(statement: str, values: Sequence[Any], connection: sqlite3.Connection) -> int:
    return connection.execute(statement, values).rowcount
