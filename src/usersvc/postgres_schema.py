"""How PostgreSQL is connected to, how its schema is brought up to date, and what its errors mean to us."""

from __future__ import annotations

import asyncpg

from mesh.errors import SettingsError
from usersvc import migrations
from usersvc.sql import dollars
from usersvc.store import OpenFailed, StoreFailed, StoreFull, StoreUnavailable

# Keys of advisory locks, in PostgreSQL's space of pairs; the writes' own locks are in its space of single numbers.
_SPACE = 0x75736572  # "user"
MIGRATING = f"SELECT pg_advisory_xact_lock({_SPACE}, 1)"
LOGGING = f"SELECT pg_advisory_xact_lock({_SPACE}, 2)"

CONNECT_TIMEOUT = 5.0  # seconds
SETTINGS = {
    "application_name": "usersvc",
    # An instance that is stopped inside a transaction would hold up every other writer.
    "idle_in_transaction_session_timeout": "2000",  # milliseconds
}

# Everything that asyncpg raises when the database or the way to it is at fault.
ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
# Another try of the same transaction may succeed at once.
COLLISIONS = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError)


async def prepare(url: str) -> None:
    """Bring the schema up to date; raise SettingsError or OpenFailed with one sentence if that cannot be done.

    Several instances may start at once: one migrates, the others wait for it.
    """
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT, server_settings=SETTINGS)
        try:
            await _migrate(connection)
        finally:
            await connection.close(timeout=1)
    except (ValueError, asyncpg.ClientConfigurationError) as e:
        raise SettingsError(
            "USERS_DATABASE is no address of PostgreSQL: write postgresql://user:password@host:5432/database"
        ) from e
    except ERRORS as e:
        raise OpenFailed(f"cannot keep users in PostgreSQL: {_sentence(e)}") from e


async def _migrate(connection: asyncpg.Connection) -> None:
    if await connection.fetchval("SHOW server_encoding") != "UTF8":
        raise OpenFailed("cannot keep users in PostgreSQL: the database must have the encoding UTF8; make another one")
    if await connection.fetchval("SELECT to_regclass('schema_version')") is not None and not await _pending(connection):
        return
    async with connection.transaction():
        await connection.execute(MIGRATING)
        await connection.execute(migrations.CREATE)
        for migration in await _pending(connection):
            await connection.execute(migration.sql)
            await connection.execute(dollars(migrations.WRITE), migration.version)


async def _pending(connection: asyncpg.Connection) -> list[migrations.Migration]:
    return list(migrations.pending("postgres", await connection.fetchval(migrations.READ)))


def failure(error: Exception) -> StoreFailed:
    """Translate an error. Its own text stays behind: it may quote a user's email."""
    kind = StoreFull if isinstance(error, asyncpg.DiskFullError) else StoreUnavailable
    return kind(f"PostgreSQL: {type(error).__name__} {getattr(error, 'sqlstate', None) or ''}".rstrip())


def _sentence(error: Exception) -> str:
    sentences: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
        (
            (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError),
            "it refused the user or the password; check USERS_DATABASE",
        ),
        (asyncpg.InvalidCatalogNameError, "it has no database of this name; make it, or check USERS_DATABASE"),
        (asyncpg.InsufficientPrivilegeError, "the user may not make tables; grant it CREATE on its schema"),
        (asyncpg.TooManyConnectionsError, "it takes no more connections; raise max_connections"),
        (asyncpg.CannotConnectNowError, "it is starting or stopping; try again"),
        (asyncpg.ReadOnlySQLTransactionError, "it is a read-only replica; name the primary"),
        (asyncpg.DiskFullError, "its disk is full; make room"),
        (TimeoutError, f"it did not answer within {CONNECT_TIMEOUT:g} seconds; check the host and the port"),
        (OSError, "nobody answers at its address; check the host and the port, and that it runs"),
    )
    for kinds, sentence in sentences:
        if isinstance(error, kinds):
            return sentence
    return f"it answered with {type(error).__name__} {getattr(error, 'sqlstate', None) or ''}".rstrip()
