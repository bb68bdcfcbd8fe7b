"""Opens the store that a URL names: sqlite:///path, postgresql://…, or memory: for a try."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from mesh.clock import Clock
from mesh.errors import SettingsError
from mesh.wallclock import CLOCK
from usersvc.store import Retention, UserStore

DEFAULT = "sqlite:///users.db"
_FORMS = (
    "write sqlite:///users.db (relative), sqlite:////var/lib/users.db (absolute) or postgresql://user@host/database"
)
_SYNCHRONOUS = ("FULL", "NORMAL")


async def open_store(url: str, *, clock: Clock = CLOCK, retention: Retention = Retention()) -> UserStore:  # noqa: B008  frozen value
    """Open the store of a URL.

    Raises SettingsError if the URL is wrong, OpenFailed if what it names cannot be used: one sentence each, and never
    with a password in it.
    """
    scheme = url.partition(":")[0]
    if url == "memory:":
        from usersvc.memory import MemoryStore

        return MemoryStore(clock=clock, retention=retention)
    if scheme == "sqlite":
        return await _open_sqlite(url, clock, retention)
    if scheme in ("postgresql", "postgres"):
        try:
            from usersvc.postgres import PostgresStore
        except ModuleNotFoundError as e:
            if e.name != "asyncpg":
                raise
            raise SettingsError(
                "USERS_DATABASE names PostgreSQL: install its driver, pip install 'grpc-mesh[postgres]'"
            ) from e
        return await PostgresStore.open(url, clock=clock, retention=retention)
    raise SettingsError(f"USERS_DATABASE names no database that is known: {_FORMS}")


async def _open_sqlite(url: str, clock: Clock, retention: Retention) -> UserStore:
    from usersvc.sqlite import SqliteStore

    parts = urlsplit(url)
    path = parts.path.removeprefix("/")
    options = dict(parse_qsl(parts.query))
    synchronous = options.pop("synchronous", "FULL").upper()
    if parts.netloc or not path or "\0" in path:
        raise SettingsError(f"USERS_DATABASE names no file: {_FORMS}")
    if options or synchronous not in _SYNCHRONOUS:
        raise SettingsError("USERS_DATABASE has an unknown option: the only one is ?synchronous=full or normal")
    return await SqliteStore.open(Path(path), clock=clock, retention=retention, synchronous=synchronous)
