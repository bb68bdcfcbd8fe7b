"""The three stores keep the promises of the port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from contract.users import CHECKS, HandClock, Opening
from usersvc.memory import MemoryStore
from usersvc.postgres import PostgresStore
from usersvc.sqlite import SqliteStore
from usersvc.store import Retention, UserStore


def _memory() -> Opening:
    shared: list[MemoryStore] = []

    async def open_one(clock: HandClock, retention: Retention) -> UserStore:
        if not shared:
            shared.append(MemoryStore(clock=clock, retention=retention))
        return shared[0]

    return Opening(open_one)


def _sqlite(path: Path) -> Opening:
    async def open_one(clock: HandClock, retention: Retention) -> UserStore:
        return await SqliteStore.open(path, clock=clock, retention=retention)

    return Opening(open_one)


def _postgres(url: str) -> Opening:
    async def open_one(clock: HandClock, retention: Retention) -> UserStore:
        return await PostgresStore.open(url, clock=clock, retention=retention)

    return Opening(open_one)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    if request.param == "memory":
        return _memory()
    if request.param == "sqlite":
        return _sqlite(tmp_path / "users.db")
    return _postgres(request.getfixturevalue("postgres").make())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_a_store_keeps_the_promise(check: Callable[[Opening], Coroutine[None, None, None]], opening: Opening) -> None:
    asyncio.run(check(opening))
