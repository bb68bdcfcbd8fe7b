"""`python -m usersvc`, started rightly and wrongly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from support.ports import free_port
from users.v1.users_pb2 import CreateUserRequest, GetUserRequest, User
from users.v1.users_pb2_grpc import UserServiceStub
from usersvc import database
from usersvc.__main__ import main

_COMMAND = [sys.executable, "-m", "usersvc"]


def _run(url: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "USERS_DATABASE": url, "MESH_ETCD": "127.0.0.1:1", **env}
    return subprocess.run(_COMMAND, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        ("mysql://localhost/users", 2, "no database that is known"),
        ("sqlite:", 2, "names no file"),
        ("sqlite://users.db", 2, "names no file"),
        ("sqlite:///users.db?mode=ro", 2, "unknown option"),
        ("sqlite:///users.db?synchronous=off", 2, "unknown option"),
        ("sqlite:////nowhere/at/all/users.db", 1, "no directory /nowhere/at/all"),
        ("sqlite:///.", 1, "cannot be opened"),
        ("postgresql://users:s3cret@127.0.0.1:1/users", 1, "nobody answers"),
        ("postgresql://users:s3cret@127.0.0.1:x/users", 2, "no address of PostgreSQL"),
    ],
)
def test_a_wrong_database_ends_with_one_sentence(url: str, code: int, told: str, tmp_path: Path) -> None:
    done = _run(url, tmp_path)
    assert done.returncode == code
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr


def test_a_wrong_setting_ends_with_one_sentence(tmp_path: Path) -> None:
    done = _run("memory:", tmp_path, MESH_ETCD="nonsense")
    assert done.returncode == 2
    assert "MESH_ETCD" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_its_driver_postgresql_is_told_how_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("asyncpg", "usersvc.postgres")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(Exception, match=r"pip install 'grpc-mesh\[postgres\]'"):
        asyncio.run(database.open_store("postgresql://localhost/users"))


def test_help_tells_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "USERS_DATABASE=postgresql://" in capsys.readouterr().out


def test_it_serves_leaves_and_logs_no_name_or_email(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        **os.environ,
        "MESH_ETCD": "127.0.0.1:1",
        "MESH_LISTEN": f"127.0.0.1:{port}",
        "MESH_LOG_LEVEL": "DEBUG",
    }
    process = subprocess.Popen(_COMMAND, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        user = asyncio.run(_call(port))
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait(5)
    assert process.returncode == 0
    assert user.name == "Secretname"
    assert (tmp_path / "users.db").exists()
    assert "secret" not in log.lower()
    for line in log.splitlines():
        json.loads(line)


async def _call(port: int) -> User:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = UserServiceStub(channel)
        user = User(id="ada", name="Secretname", email="secret@example.com")
        await stub.CreateUser(CreateUserRequest(user=user), wait_for_ready=True, timeout=20)
        for wrong in (user, User(name="Secret\0", email="secret@example.com"), User(name="Secret", email=user.email)):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.CreateUser(CreateUserRequest(user=wrong), timeout=10)
        found: User = await stub.GetUser(GetUserRequest(id="ada"), timeout=10)
        return found
