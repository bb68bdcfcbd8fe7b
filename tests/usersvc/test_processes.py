"""Several processes on one database, as `mesh up` runs them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contract.users import all_changes
from usersvc.database import open_store
from usersvc.store import UserStore

_PROGRAM = Path(__file__).parent / "processes.py"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'users.db'}"
    made: str = request.getfixturevalue("postgres").make()
    return made


@contextmanager
def _processes(url: str, mode: str, count: int, each: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes on a database that none of them has seen, all at once; go when all of them are ready."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([sys.executable, str(_PROGRAM), url, mode, f"p{n}", str(each)], **pipes)  # type: ignore[call-overload]  # the same for all
        for n in range(count)
    ]
    try:
        for process in running:
            assert process.stdout.readline() == "ready\n"
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait(10)
            process.stdin.close()
            process.stdout.close()


def _read(url: str) -> tuple[list[str], list[str]]:
    async def story() -> tuple[list[str], list[str]]:
        store: UserStore = await open_store(url)
        users = [user.id for user in await store.page("", 10_000)]
        changes = [change.user.id for change in await all_changes(store)]
        await store.close()
        return users, changes

    return asyncio.run(story())


def test_one_request_at_four_processes_makes_one_user_and_equal_answers(url: str) -> None:
    with _processes(url, "same", 4, 13) as running:
        answers = [line for process in running for line in process.stdout]  # type: ignore[union-attr]  # it is a pipe
        assert [process.wait(30) for process in running] == [0] * 4
    assert len(answers) == 52
    assert len(set(answers)) == 1
    users, changes = _read(url)
    assert len(users) == len(changes) == 1


def test_processes_that_start_at_once_on_nothing_all_serve(url: str) -> None:
    with _processes(url, "own", 4, 25) as running:
        made = [line.strip() for process in running for line in process.stdout]  # type: ignore[union-attr]  # it is a pipe
        assert [process.wait(30) for process in running] == [0] * 4
    users, changes = _read(url)
    assert sorted(made) == sorted(users) == sorted(changes)
    assert len(made) == 100


def test_a_killed_process_loses_nothing_that_it_acknowledged(url: str) -> None:
    with _processes(url, "own", 3, 100_000) as running:
        victim = running[0]
        acknowledged = [victim.stdout.readline().strip() for _ in range(60)]  # type: ignore[union-attr]  # it is a pipe
        victim.kill()
        acknowledged += [line.strip() for line in victim.stdout if line.endswith("\n")]  # type: ignore[union-attr]  # it is a pipe
        # The others go on, whatever it held when it died.
        for process in running[1:]:
            acknowledged += [process.stdout.readline().strip() for _ in range(60)]  # type: ignore[union-attr]  # it is a pipe
    users, changes = _read(url)
    assert set(acknowledged) <= set(users)
    assert sorted(users) == sorted(changes)
