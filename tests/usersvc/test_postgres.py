"""PostgreSQL in trouble: away, restarted, wrongly named; and what its store keeps to itself."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterator

import pytest

from contract.users import REQUEST, ada, create, refused
from mesh.errors import MeshError, SettingsError
from support.ports import free_port
from support.postgres import Postgres
from users.v1.users_pb2 import CreateUserRequest, GetUserRequest
from usersvc.postgres import PostgresStore
from usersvc.postgres_schema import LOGGING
from usersvc.servicer import UserService
from usersvc.store import OpenFailed, StoreUnavailable


class Caller:
    def time_remaining(self) -> float:
        return 1.0


@pytest.fixture
def own() -> Iterator[Postgres]:
    """A server that this test alone breaks."""
    with Postgres() as server:
        yield server


def test_a_database_that_was_away_is_back_within_two_seconds_of_its_return(own: Postgres) -> None:
    async def story() -> None:
        store = await PostgresStore.open(own.make())
        service = UserService(store)
        made = await service.CreateUser(CreateUserRequest(user=ada(), request_id=REQUEST), Caller())
        own.stop(signal.SIGQUIT)
        for _ in range(3):
            begun = time.monotonic()
            await refused(service.GetUser(GetUserRequest(id="ada"), Caller()), "DATABASE_UNAVAILABLE")
            await refused(service.CreateUser(CreateUserRequest(user=ada("bob")), Caller()), "DATABASE_UNAVAILABLE")
            assert time.monotonic() - begun < 2.5
        await asyncio.to_thread(own.start)
        returned = time.monotonic()
        while True:
            try:
                assert await service.GetUser(GetUserRequest(id="ada"), Caller()) == made
                break
            except MeshError:
                assert time.monotonic() - returned < 2
        assert await service.CreateUser(CreateUserRequest(user=ada(), request_id=REQUEST), Caller()) == made
        await store.close()

    asyncio.run(story())


def test_a_hung_database_costs_a_caller_no_more_than_its_deadline(own: Postgres) -> None:
    async def story() -> None:
        store = await PostgresStore.open(own.make())
        service = UserService(store)
        await create(store, ada())
        own.sql("SELECT 1")
        stopped = own.hang()
        try:
            begun = time.monotonic()
            await refused(service.GetUser(GetUserRequest(id="ada"), Caller()), "DATABASE_UNAVAILABLE")
            assert time.monotonic() - begun < 2
        finally:
            stopped.resume()
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await store.get("ada") is not None
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        await store.close()

    asyncio.run(story())


def test_a_write_held_up_by_a_lock_is_bounded_and_leaves_nothing(postgres: Postgres) -> None:
    async def story() -> None:
        url = postgres.make()
        store, other = await PostgresStore.open(url), await PostgresStore.open(url)
        service = UserService(store, patience=0.3)
        async with other._pool.acquire() as blocker, blocker.transaction():
            await blocker.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            begun = time.monotonic()
            await refused(service.CreateUser(CreateUserRequest(user=ada()), Caller()), "DATABASE_UNAVAILABLE")
            assert time.monotonic() - begun < 1.5
        assert await store.get("ada") is None
        await service.CreateUser(CreateUserRequest(user=ada()), Caller())
        await store.close()
        await other.close()

    asyncio.run(story())


def test_an_instance_that_is_stopped_in_the_midst_of_a_write_holds_others_up_for_two_seconds(
    postgres: Postgres,
) -> None:
    async def story() -> None:
        url = postgres.make()
        store, other = await PostgresStore.open(url), await PostgresStore.open(url)
        connection = await other._pool.acquire()
        await connection.execute("BEGIN")
        await connection.execute(LOGGING)  # and not a sign of life any more
        begun = time.monotonic()
        async with asyncio.timeout(6):
            await create(store, ada())
        assert time.monotonic() - begun > 1
        await other._pool.release(connection)
        await store.close()
        await other.close()

    asyncio.run(story())


def _failure(url: str) -> str:
    with pytest.raises((OpenFailed, SettingsError)) as caught:
        asyncio.run(PostgresStore.open(url))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "s3cret" not in sentence
    return sentence


def test_what_cannot_be_connected_to_is_told_in_one_sentence(postgres: Postgres) -> None:
    assert "password" in _failure(postgres.url("postgres", password="s3cret"))
    assert "no database of this name" in _failure(postgres.url("nowhere"))
    assert "nobody answers" in _failure(f"postgresql://u:s3cret@127.0.0.1:{free_port()}/x")
    assert "no address" in _failure("postgresql://u:s3cret@127.0.0.1:port/x")


def test_a_newer_schema_is_left_alone(postgres: Postgres) -> None:
    url = postgres.make()
    asyncio.run(_open_and_close(url))
    postgres.sql("INSERT INTO schema_version VALUES (99)", url.rpartition("/")[2])
    assert "schema version 99" in _failure(url)


async def _open_and_close(url: str) -> None:
    store = await PostgresStore.open(url)
    await store.close()


def test_a_user_who_may_not_make_tables_can_serve_a_schema_that_is_there(postgres: Postgres) -> None:
    url = postgres.make()
    database = url.rpartition("/")[2]
    role = f"plain_{database}"
    postgres.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'right'", database)
    plain = url.replace("postgres:right", f"{role}:right")
    assert "may not make tables" in _failure(plain)
    asyncio.run(_open_and_close(url))
    postgres.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}", database)
    asyncio.run(_open_and_close(plain))


def test_neither_logs_nor_errors_tell_an_email(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """PostgreSQL's own message of a violated constraint quotes the row."""

    async def story() -> None:
        store = await PostgresStore.open(postgres.make())
        async with store._pool.acquire() as connection:
            await connection.execute(
                "INSERT INTO users VALUES ('ghost', 'Secret', 'secret@example.com', 'other key', 0, 0, 'e');"
                "ALTER TABLE users ADD UNIQUE (email)"
            )
        with pytest.raises(StoreUnavailable) as caught:
            await create(store, ada("bob", "secret@example.com", "Secret"))
        assert "secret" not in str(caught.value).lower()
        await store.close()

    with caplog.at_level(logging.DEBUG, "usersvc"):
        asyncio.run(story())
    assert "UniqueViolationError" in caplog.text
    assert "secret" not in caplog.text.lower()
