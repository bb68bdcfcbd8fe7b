"""Users in PostgreSQL, for instances on several machines. The driver is asyncpg (pip install 'grpc-mesh[postgres]').

How writes of many instances keep out of each other's way: before it reads its facts, a write takes advisory locks on
the hashes of its request_id, its user's id and its email, in the order of their numbers. Two writes that could matter
to each other run one after the other, all others side by side, and what `decide` was told stays true until the commit.

How the log keeps its order: sequences are drawn under one more lock that is taken last and held through the commit.
Without it a later number could become visible before an earlier one, and a watcher would step over the earlier.
The price is one commit at a time among those that change something (NOTIFY would ask the same price).

How callers get away: asyncpg answers a cancellation by asking the server to cancel, and waits for its word. A server
that hangs never gives it, so the asking is left to a task of its own and the caller goes at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import asyncpg

from mesh.clock import Clock
from mesh.wallclock import CLOCK
from users.v1.users_pb2 import User
from usersvc import sql
from usersvc.postgres_schema import COLLISIONS, CONNECT_TIMEOUT, ERRORS, LOGGING, SETTINGS, failure, prepare
from usersvc.store import Change, ChangesForgotten, OpenFailed, Retention
from usersvc.writes import Write, decide

T = TypeVar("T")

_log = logging.getLogger("usersvc.postgres")

CONNECTIONS = 10
_TRIES = 3  # of a write that collided; the locks make a first collision rare
_COMMAND_TIMEOUT = 10.0  # seconds; callers are less patient, this is for the work without callers
_CLOSING = 0.5  # seconds; whoever closes has answered its callers before
_RELEASING = 1.0  # seconds that a connection has to become usable again; then it is dropped
_LOCK = "SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS key"


class PostgresStore:
    """Users in a PostgreSQL database. One event loop owns it; connections are made when needed, anew when lost.

    `_left` holds the tasks that clean up after callers who went away.
    """

    def __init__(self, pool: asyncpg.Pool, key: bytes, clock: Clock, retention: Retention) -> None:
        self._pool = pool
        self._clock = clock
        self._retention = retention
        self._left: set[asyncio.Task[Any]] = set()
        self.key = key

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        clock: Clock = CLOCK,
        retention: Retention = Retention(),  # noqa: B008  frozen value
    ) -> Self:
        """Connect and migrate; raise SettingsError or OpenFailed with one sentence if that cannot be done."""
        await prepare(url)
        pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=CONNECTIONS,
            timeout=CONNECT_TIMEOUT,
            command_timeout=_COMMAND_TIMEOUT,
            server_settings=SETTINGS,
            reset=_reset,
        )
        try:
            return cls(pool, await pool.fetchval(sql.TOKEN_KEY), clock, retention)
        except ERRORS as e:
            raise OpenFailed(f"cannot keep users in PostgreSQL: {failure(e)}") from e

    async def get(self, id: str) -> User | None:
        """Return the user of this id, or None."""
        rows = await self._fetch(sql.GET, id)
        return sql.user_of(rows[0]) if rows else None

    async def get_many(self, ids: Sequence[str]) -> Mapping[str, User]:
        """Return those of the users that exist, by id."""
        return {row[0]: sql.user_of(row) for row in await self._fetch(sql.MANY_POSTGRES, list(ids))}

    async def page(self, after: str, limit: int) -> Sequence[User]:
        """Return the first users after an id."""
        return [sql.user_of(row) for row in await self._fetch(sql.PAGE, after, limit)]

    async def write(self, write: Write) -> bytes:
        """Do a write in one durable transaction and return its answer."""
        return await self._while_wanted(self._write(write))

    async def _write(self, write: Write) -> bytes:
        for _ in range(_TRIES - 1):
            try:
                return await self._try(write)
            except COLLISIONS as e:
                _log.info("a write is tried again: %s", failure(e))
            except ERRORS as e:
                raise failure(e) from e
        try:
            return await self._try(write)
        except ERRORS as e:
            raise failure(e) from e

    async def _try(self, write: Write) -> bytes:
        now = int(self._clock.time() * 1_000_000)
        async with self._connection() as connection, connection.transaction():
            await connection.execute(_LOCK, _locks(write))
            facts = sql.facts_of(await _one(connection, *sql.wanted(write, now)))
            decision = decide(write, facts, now)
            for statement, values in sql.effects(write, decision, now, self._retention):
                if statement is sql.LOG:
                    await connection.execute(LOGGING)
                await connection.execute(sql.dollars(statement), *values)
        return decision.answer

    async def head(self) -> int:
        """Return the sequence of the last change."""
        head: int = (await self._fetch(sql.HEAD))[0][0]
        return head

    async def changes(self, after: int, limit: int) -> Sequence[Change]:
        """Return the first changes after a sequence."""
        rows = await self._fetch(sql.CHANGES, after, limit)
        # Asked after the rows were read: what was pruned in between shows.
        ((forgotten,),) = await self._fetch(sql.FORGOTTEN)
        if after < forgotten or (not rows and after > await self.head()):
            raise ChangesForgotten("the changes asked for are gone")
        return [sql.change_of(row) for row in rows]

    async def prune(self) -> None:
        """Forget what is past its retention, a portion at a time."""
        now = int(self._clock.time() * 1_000_000)
        oldest = now - int(self._retention.changes * 1_000_000)
        await self._count(sql.FORGET, oldest, self._retention.change_rows)
        while await self._count(sql.PRUNE_CHANGES) == sql.PORTION:
            pass
        while await self._count(sql.PRUNE_REQUESTS, now) == sql.PORTION:
            pass

    async def close(self) -> None:
        """Let calls in flight finish, and close every connection."""
        try:
            async with asyncio.timeout(_CLOSING):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _fetch(self, statement: str, *values: Any) -> list[Any]:
        async def fetch() -> list[Any]:
            async with self._connection() as connection:
                rows: list[Any] = await connection.fetch(sql.dollars(statement), *values)
                return rows

        try:
            return await self._while_wanted(fetch())
        except ERRORS as e:
            raise failure(e) from e

    async def _count(self, statement: str, *values: Any) -> int:
        try:
            done: str = await self._pool.execute(sql.dollars(statement), *values)
        except ERRORS as e:
            raise failure(e) from e
        return int(done.rpartition(" ")[2])  # "DELETE 17"

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        connection = await self._pool.acquire()
        try:
            yield connection
        finally:
            await self._pool.release(connection, timeout=_RELEASING)

    async def _while_wanted(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work; if the caller goes away, cancel the work but do not wait until it has cleaned up."""
        task = asyncio.create_task(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            self._left.add(task)
            task.add_done_callback(self._left.discard)
            raise


async def _one(connection: Any, statement: str, values: Sequence[Any]) -> Any:
    return await connection.fetchrow(sql.dollars(statement), *values)


async def _reset(_: asyncpg.Connection) -> None:
    """Hand a connection back without a round trip: nothing here leaves state behind.

    A transaction that was left open asyncpg has rolled back before it asks.
    """


def _locks(write: Write) -> list[int]:
    names = [f"id {write.id}"]
    if write.email_key:
        names.append(f"email {write.email_key}")
    if write.named:
        names.append(f"request {write.named.request_id}")
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return sorted(int.from_bytes(digest, signed=True) for digest in digests)
