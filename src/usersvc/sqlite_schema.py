"""How a connection to SQLite is made, how its schema is brought up to date, and what its errors mean to us."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from usersvc import migrations
from usersvc.store import OpenFailed, StoreFailed, StoreFull, StoreUnavailable

OPENING = 10_000  # milliseconds that a starting instance waits for another one that migrates


def connect(path: Path, *, synchronous: str = "FULL", busy: int = 0, max_pages: int = 0) -> sqlite3.Connection:
    """Open the file. No transaction begins unless asked for; `busy` is how many milliseconds a lock is waited for.

    FULL makes a commit durable before it is answered. NORMAL may lose the last commits when the machine (not the
    process) dies, and is several times as fast on slow disks.
    """
    # Connections are used by one thread at a time; which one that is may change.
    # Opening waits in any case: whoever closes last, or opens first, has the file to itself for a moment.
    opening = max(busy, OPENING) / 1000
    connection = sqlite3.connect(path, timeout=opening, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("PRAGMA journal_size_limit=67108864")  # bytes; else the WAL keeps the size of its worst day
    connection.execute("PRAGMA trusted_schema=OFF")
    if max_pages:
        connection.execute(f"PRAGMA max_page_count={max_pages}")
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # the first read opens the WAL
    connection.execute(f"PRAGMA busy_timeout={busy}")
    return connection


def prepare(path: Path) -> None:
    """Make the file and its schema ready; raise OpenFailed with one sentence if that cannot be done.

    Several processes may start at once: one migrates, the others wait for it.
    """
    if not path.parent.is_dir():
        raise OpenFailed(f"cannot keep users in {path}: there is no directory {path.parent}; make it")
    with contextlib.suppress(OSError):  # whatever is wrong with the place, SQLite says it next
        # A new file is its owner's alone, because it holds people's names; SQLite gives its side files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    try:
        with contextlib.closing(connect(path, busy=OPENING)) as connection:
            _use_wal(connection)
            _migrate(connection)
    except sqlite3.Error as e:
        raise OpenFailed(f"cannot keep users in {path}: {_sentence(e)}") from e


def _use_wal(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    # Changing the mode takes an exclusive lock without waiting for it; the lock of a transaction does wait.
    for _ in range(100):
        with contextlib.suppress(sqlite3.OperationalError):
            if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal":
                return
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    raise OpenFailed("the database cannot be switched to a write-ahead log: put it on a local disk")


def _migrate(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.OperationalError):  # no such table: a new file
        if not migrations.pending("sqlite", connection.execute(migrations.READ).fetchone()[0]):
            # Nothing to do, as far as can be read. Whether it may be written shows here rather than at the first call.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            return
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # commits, or rolls back
        connection.execute(migrations.CREATE)
        for migration in migrations.pending("sqlite", connection.execute(migrations.READ).fetchone()[0]):
            for statement in _statements(migration.sql):
                connection.execute(statement)
            connection.execute(migrations.WRITE, (migration.version,))


def _statements(script: str) -> Iterator[str]:
    """Split a script; executescript() would commit the transaction that it runs in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the primary of an extended code


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else holds the lock that was needed."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_broken(error: sqlite3.Error) -> bool:
    """Whether a new connection may do better than this one."""
    return _code(error) in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_MISUSE,
    )


def failure(error: sqlite3.Error) -> StoreFailed:
    """Translate an error of SQLite."""
    kind = StoreFull if _code(error) == sqlite3.SQLITE_FULL else StoreUnavailable
    return kind(f"SQLite: {getattr(error, 'sqlite_errorname', type(error).__name__)}")


def _sentence(error: sqlite3.Error) -> str:
    sentences = {
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that it is a file and that its directory may be written",
        sqlite3.SQLITE_READONLY: "it may not be written; check the permissions of the file and of its directory",
        sqlite3.SQLITE_NOTADB: "the file is no SQLite database; name another one",
        sqlite3.SQLITE_CORRUPT: "the database is damaged; restore it from a backup",
        sqlite3.SQLITE_BUSY: "another program has locked it; end that program",
        sqlite3.SQLITE_FULL: "the disk is full; make room",
        sqlite3.SQLITE_IOERR: "the disk reports an error; check it",
    }
    return sentences.get(_code(error), f"SQLite says {error}")
