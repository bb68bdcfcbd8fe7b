"""SQLite in trouble: locked, full, read-only, torn away; and what a group of writes promises."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.users import REQUEST, HandClock, ada, all_changes, create, delete, refused
from users.v1.users_pb2 import CreateUserRequest, GetUserRequest, User
from usersvc import migrations, sql, sqlite_schema
from usersvc.servicer import UserService
from usersvc.sqlite import SqliteStore
from usersvc.sqlite_turn import Turn
from usersvc.sqlite_writer import GROUP, Writer
from usersvc.store import OpenFailed, Retention, StoreFull
from usersvc.writes import Create


class Caller:
    def time_remaining(self) -> float:
        return 0.5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.db"


@pytest.fixture
def intruder(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program on the same file."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    yield connection
    connection.close()


def test_a_locked_database_is_unavailable_then_recovers(path: Path, intruder: sqlite3.Connection) -> None:
    async def story() -> None:
        store = await SqliteStore.open(path)
        service = UserService(store)
        made = await service.CreateUser(CreateUserRequest(user=ada()), Caller())
        intruder.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        request = CreateUserRequest(user=ada("bob", "bob@example.com"))
        await refused(service.CreateUser(request, Caller()), "DATABASE_UNAVAILABLE")
        assert time.monotonic() - begun < 2  # bounded by the caller's deadline
        # Readers do not mind.
        assert await service.GetUser(GetUserRequest(id="ada"), Caller()) == made
        waiting = asyncio.ensure_future(store.write(Create(ada("eve", "eve@example.com"))))
        await asyncio.sleep(0.05)
        intruder.execute("ROLLBACK")
        freed = time.monotonic()
        await waiting
        assert time.monotonic() - freed < 2
        assert await store.get("bob") is None  # its caller went away before the lock was free
        await store.close()

    asyncio.run(story())


def test_a_reader_that_would_wait_does_not_hold_the_loop(path: Path) -> None:
    async def story() -> None:
        store = await SqliteStore.open(path)
        await create(store, ada())
        busy = sqlite3.OperationalError("database is locked")
        busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
        threads: list[str] = []

        def read(connection: sqlite3.Connection) -> int:
            import threading

            threads.append(threading.current_thread().name)
            if len(threads) == 1:
                raise busy
            return 7

        assert await store._read(read) == 7
        assert threads[0] == "MainThread"
        assert threads[1].startswith("usersvc-reader")
        await store.close()

    asyncio.run(story())


def test_a_full_database_refuses_what_does_not_fit_and_loses_nothing(path: Path) -> None:
    async def story() -> None:
        store = await SqliteStore.open(path, max_pages=20)
        kept: list[User] = []
        full = False
        while not full:
            n = len(kept)
            try:
                kept.append(await create(store, ada(f"u{n:04}", f"{n}@example.com", "x" * 200)))
            except StoreFull:
                full = True
        many = (create(store, ada(f"v{n}", f"v{n}@example.com", "x" * 200)) for n in range(20))
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        kept += [outcome for outcome in outcomes if isinstance(outcome, User)]
        assert {type(outcome) for outcome in outcomes} <= {StoreFull, User}
        assert len(kept) > 10
        found = await store.get_many([user.id for user in kept])
        assert [found[user.id] for user in kept] == kept
        request = CreateUserRequest(user=ada(name="x" * 200))
        refusal = await refused(UserService(store).CreateUser(request, Caller()), "DATABASE_FULL")
        assert refusal.code.name == "RESOURCE_EXHAUSTED"
        await store.close()
        larger = await SqliteStore.open(path)  # the operator has made room
        await create(larger, ada())
        assert len(await larger.page("", 3000)) == len(kept) + 1
        await larger.close()

    asyncio.run(story())


def test_a_failing_write_takes_nothing_of_its_group_with_it(path: Path, intruder: sqlite3.Connection) -> None:
    async def story() -> None:
        store = await SqliteStore.open(path)
        await create(store, ada("taken"))
        intruder.execute("BEGIN IMMEDIATE")  # all of these wait, and become one group
        works = [create(store, ada(f"u{n}", f"{n}@example.com")) for n in range(10)]
        works.insert(5, create(store, ada("bob")))
        group = asyncio.gather(*works, return_exceptions=True)
        broken = asyncio.ensure_future(store._writer.do(lambda c: c.execute("INSERT INTO nowhere VALUES (1)")))
        await asyncio.sleep(0.05)
        intruder.execute("ROLLBACK")
        outcomes = await group
        assert [isinstance(outcome, User) for outcome in outcomes] == [True] * 5 + [False] + [True] * 5
        assert getattr(outcomes[5], "reason", "") == "EMAIL_TAKEN"
        await asyncio.wait({broken})
        assert broken.exception() is not None
        assert len(await store.page("", 100)) == 11
        await store.close()

    asyncio.run(story())


def test_when_a_commit_fails_nobody_is_told_of_success(path: Path, intruder: sqlite3.Connection) -> None:
    class Failing(sqlite3.Connection):
        fails = 0

        def execute(self, sql: str, *rest: object) -> sqlite3.Cursor:
            if sql == "COMMIT" and Failing.fails > 0:
                Failing.fails -= 1
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *rest)  # type: ignore[arg-type]  # passed through

    async def story() -> None:
        store = await SqliteStore.open(path)
        await store._writer.close()
        store._writer = Writer(
            lambda: sqlite3.connect(path, factory=Failing, isolation_level=None, timeout=0), Turn(path)
        )
        Failing.fails = 1
        with pytest.raises(Exception, match="SQLite"):
            await create(store, ada())
        assert await store.get("ada") is None
        Failing.fails = 1  # of the group: each is then tried alone
        intruder.execute("BEGIN IMMEDIATE")  # until all of them wait
        group = asyncio.gather(*(create(store, ada(f"u{n}", f"{n}@example.com")) for n in range(5)))
        await asyncio.sleep(0)
        intruder.execute("ROLLBACK")
        await group
        assert Failing.fails == 0
        assert len(await store.page("", 10)) == 5
        assert len(await all_changes(store)) == 5
        await store.close()

    asyncio.run(story())


def test_cancelled_callers_do_not_disturb_the_group(path: Path) -> None:
    async def story() -> None:
        store = await SqliteStore.open(path)
        tasks = [asyncio.ensure_future(create(store, ada(f"u{n}", f"{n}@example.com"))) for n in range(GROUP + 50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ids = {user.id for user in await store.page("", 1000)}
        assert {f"u{n}" for n in range(1, GROUP + 50, 2)} <= ids
        assert {change.user.id for change in await all_changes(store)} == ids
        await store.close()

    asyncio.run(story())


def test_closing_finishes_what_was_begun(path: Path) -> None:
    async def story() -> None:
        store = await SqliteStore.open(path)
        tasks = [asyncio.ensure_future(create(store, ada(f"u{n}", f"{n}@example.com"))) for n in range(100)]
        await asyncio.sleep(0)
        await store.close()
        assert len(await asyncio.gather(*tasks)) == 100
        with pytest.raises(Exception, match="closed"):
            await delete(store, "u1")

    asyncio.run(story())


def test_what_is_past_its_time_leaves_the_file(path: Path) -> None:
    async def story() -> None:
        clock = HandClock()
        retention = Retention(requests=10.0, changes=10.0)
        store = await SqliteStore.open(path, clock=clock, retention=retention)
        for n in range(sql.PORTION // 100):
            await create(store, ada(f"u{n}", f"{n}@example.com"), f"{n:08}{REQUEST[8:]}")
        clock.now += 11
        await store.prune()
        rows = await store._writer.do(
            lambda c: [c.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("requests", "changes")]
        )
        assert rows == [0, 0]
        await store.close()

    asyncio.run(story())


def test_users_and_tokens_outlive_the_process(path: Path) -> None:
    async def story() -> None:
        store = await SqliteStore.open(path)
        made, key = await create(store, ada(), REQUEST), store.key
        await store.close()
        again = await SqliteStore.open(path)
        assert (await again.get("ada"), again.key) == (made, key)
        assert await create(again, ada(), REQUEST) == made
        await again.close()

    asyncio.run(story())


def test_a_commit_is_on_the_disk_before_it_is_answered(path: Path) -> None:
    async def story() -> None:
        store = await SqliteStore.open(path)
        pragmas = await store._writer.do(
            lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
        )
        assert pragmas == [2, "wal"]  # FULL
        await store.close()

    asyncio.run(story())


def _open_failure(path: Path) -> str:
    with pytest.raises(OpenFailed) as caught:
        asyncio.run(SqliteStore.open(path))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "private.db"

    sqlite_schema.prepare(path)

    assert path.stat().st_mode & 0o077 == 0


def test_what_cannot_be_opened_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to look like one" * 100)
    assert "no directory" in _open_failure(tmp_path / "missing" / "users.db")
    assert "no SQLite database" in _open_failure(tmp_path / "text.db")
    assert "cannot be opened" in _open_failure(tmp_path)


def test_a_newer_schema_is_left_alone(path: Path) -> None:
    sqlite_schema.prepare(path)
    newest = migrations.migrations("sqlite")[-1].version
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO schema_version VALUES (?)", (newest + 1,))
    connection.commit()
    connection.close()
    assert f"schema version {newest + 1}, this program knows up to {newest}" in _open_failure(path)


def test_a_migration_that_fails_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [
        *migrations.migrations("sqlite"),
        migrations.Migration(99, "CREATE TABLE half (x);\nCREATE TABLE users (x);"),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "migrations", lambda kind: bad)
        assert "already exists" in _open_failure(path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('half', 'users')").fetchone() == (0,)
    connection.close()
    sqlite_schema.prepare(path)


def test_the_two_kinds_of_database_have_the_same_versions() -> None:
    versions = [[m.version for m in migrations.migrations(kind)] for kind in ("sqlite", "postgres")]
    assert versions[0] == versions[1] == list(range(1, len(versions[0]) + 1))


_OPEN = """
import asyncio, os, sys, pathlib
from usersvc import migrations
from usersvc.sqlite import SqliteStore
from usersvc.store import OpenFailed

migrations.migrations("sqlite")  # everything is imported: the checkout may be closed to others
if os.geteuid() == 0:  # file permissions hold everybody back but root
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
migrations.migrations = lambda kind, known=[migrations.Migration(1, "")]: known
try:
    asyncio.run(SqliteStore.open(pathlib.Path(sys.argv[1])))
except OpenFailed as e:
    sys.exit(str(e))
"""


@pytest.mark.parametrize("which", ["file", "directory"])
def test_what_may_not_be_written_is_told_in_one_sentence(which: str) -> None:
    # Not under tmp_path: that is closed to others than its owner.
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        path = home / "users.db"
        if which == "file":
            sqlite_schema.prepare(path)
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        home.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", _OPEN, str(path)], capture_output=True, text=True)
        home.chmod(0o755)
    assert done.returncode == 1
    assert "may" in done.stderr
    assert "be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
