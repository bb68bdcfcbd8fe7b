"""What goes wrong around a service: one clear sentence each, nothing lost, nothing crashed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import mesh
from mesh.settings import Settings
from support.entrances import SERVICE, call_bytes
from support.etcd import Etcd
from support.ports import free_port
from users.v1.users_pb2 import CreateUserRequest, GetUserRequest, ListUsersRequest, ListUsersResponse, User
from users.v1.users_pb2_grpc import UserServiceStub

pytestmark = [pytest.mark.stack]


@dataclass
class Service:
    """A UserService that runs by itself."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def create(self, size: int = 200) -> tuple[grpc.StatusCode, str, bytes]:
        """Create a user."""
        mark = uuid.uuid4().hex
        user = User(name="x" * size, email=f"{mark}@private.example")
        return call_bytes(self.address, "CreateUser", CreateUserRequest(user=user).SerializeToString())

    def ready(self) -> bool:
        """Whether it answers."""
        assert self.process.poll() is None, self.log.read_text()
        return call_bytes(self.address, "ListUsers", b"", timeout=1)[0] == grpc.StatusCode.OK


@contextmanager
def service(folder: Path, database: str, etcd: Etcd, before: str = "", **env: str) -> Iterator[Service]:
    """Run `python -m usersvc`; with `before`, in a mount namespace of its own after a line of shell."""
    address, log = f"127.0.0.1:{free_port()}", folder / "usersvc.log"
    command = [sys.executable, "-m", "usersvc"]
    if before:
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh", *command]
    ours = {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": folder.name, "MESH_LISTEN": address, "USERS_DATABASE": database}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, **ours, **env}, stdout=out, stderr=out, cwd=folder)
    try:
        yield Service(process, address, log)
    finally:
        process.kill()
        process.wait()


def wait_ready(running: Service, within: float = 20.0) -> None:
    """Wait until it answers."""
    begin = time.monotonic()
    while not running.ready():
        assert time.monotonic() - begin < within, running.log.read_text()
        time.sleep(0.05)


def wait_told(running: Service, words: str, within: float = 10.0) -> str:
    """Wait until the log has some words in it, and return it."""
    begin = time.monotonic()
    while words not in (told := running.log.read_text()):
        assert time.monotonic() - begin < within, told
        time.sleep(0.05)
    return told


@pytest.fixture
def mounts() -> None:
    """File systems of one's own need user namespaces; some systems forbid them."""
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are forbidden here: no full or read-only file system can be made")


def assert_one_sentence(text: str) -> None:
    """One line, and nothing of our insides."""
    assert text
    assert "\n" not in text.strip()
    assert not any(word in text for word in ("Traceback", "sqlite3.", "SELECT", "INSERT", "Error("))


@pytest.mark.usefixtures("mounts")
def test_full_database_refuses_writes_serves_reads_and_recovers_when_there_is_room(etcd: Etcd, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=4m none {disk} && dd if=/dev/zero of={disk}/filler bs=1M count=2 status=none"
    with service(tmp_path, f"sqlite:///{disk}/users.db", etcd, mount) as running:
        wait_ready(running)
        # When the disk fills up
        made = []
        while (answer := running.create())[0] == grpc.StatusCode.OK:
            made.append(User.FromString(answer[2]).id)
            assert len(made) < 20_000
        # Then
        assert answer[0] in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        assert_one_sentence(answer[1])
        code, _, read = call_bytes(running.address, "GetUser", GetUserRequest(id=made[-1]).SerializeToString())
        assert (code, User.FromString(read).id) == (grpc.StatusCode.OK, made[-1])
        # When there is room again
        (Path(f"/proc/{running.process.pid}/root") / f"{disk}/filler".lstrip("/")).unlink()
        begin = time.monotonic()
        while running.create()[0] != grpc.StatusCode.OK:
            assert time.monotonic() - begin < 2.0
        assert count(running) == len(made) + 1


def count(running: Service) -> int:
    """How many users there are."""
    found, token = 0, ""
    while True:
        request = ListUsersRequest(page_size=1000, page_token=token)
        page = ListUsersResponse.FromString(call_bytes(running.address, "ListUsers", request.SerializeToString())[2])
        found, token = found + len(page.users), page.next_page_token
        if not token:
            return found


@pytest.mark.usefixtures("mounts")
def test_read_only_database_is_told_in_one_sentence(etcd: Etcd, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o ro none {disk}"
    with service(tmp_path, f"sqlite:///{disk}/users.db", etcd, mount) as running:
        assert running.process.wait(20) == 1
        told = running.log.read_text().splitlines()[-1]
    assert_one_sentence(told)
    assert "users.db" in told


@pytest.mark.parametrize(
    ("database", "code", "says"),
    [
        ("sqlite:///no/such/folder/users.db", 1, "folder"),
        ("sqlite:///text.db", 1, "text.db"),
        ("mysql://x", 2, "USERS_DATABASE"),
        ("postgresql://postgres:s3cret@127.0.0.1:1/users", 1, "nobody answers"),
    ],
)
def test_unusable_database_is_told_in_one_sentence(
    database: str, code: int, says: str, etcd: Etcd, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("this is no database, whatever its name says" * 100)

    with service(tmp_path, database, etcd) as running:
        assert running.process.wait(30) == code
        told = running.log.read_text()

    assert_one_sentence(told.splitlines()[-1])
    assert says in told
    assert "s3cret" not in told
    assert "Traceback" not in told


def test_service_whose_etcd_is_nowhere_serves_and_says_so(tmp_path: Path, etcd: Etcd) -> None:
    with service(tmp_path, "sqlite:///users.db", etcd, MESH_ETCD=f"127.0.0.1:{free_port()}") as running:
        wait_ready(running)
        assert running.create()[0] == grpc.StatusCode.OK
        told = wait_told(running, "etcd")

    assert "Traceback" not in told


def call(settings: Settings, within: float) -> grpc.aio.AioRpcError:
    """Make a call that must fail, and return how."""

    async def story() -> grpc.aio.AioRpcError:
        async with mesh.connect(SERVICE, settings=settings) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await UserServiceStub(channel).GetUser(GetUserRequest(id="a"), timeout=within)
            return failed.value

    return asyncio.run(story())


def test_client_whose_etcd_is_nowhere_is_told_within_its_deadline() -> None:
    begin = time.monotonic()

    error = call(Settings.from_env({"MESH_ETCD": f"127.0.0.1:{free_port()}"}), 1.0)

    assert time.monotonic() - begin < 2.0
    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert_one_sentence(error.details() or "")
    assert "etcd" in (error.details() or "")


def test_client_of_a_service_that_nobody_serves_is_told_its_name(etcd: Etcd, tmp_path: Path) -> None:
    error = call(Settings.from_env({"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name}), 1.0)

    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert_one_sentence(error.details() or "")
    assert SERVICE in (error.details() or "")


@pytest.fixture(scope="module")
def locked_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd that asks for a password."""
    with Etcd(tmp_path_factory.mktemp("locked")) as member:
        member.enable_auth("mesh", "right")
        yield member


def wrong_password(locked: Etcd) -> Mapping[str, str]:
    """Settings that will be refused."""
    return {"MESH_ETCD": locked.endpoint, "MESH_ETCD_USER": "mesh", "MESH_ETCD_PASSWORD": "s3cret-wrong"}


def test_wrong_etcd_password_is_told_in_one_sentence_by_the_command(locked_etcd: Etcd, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "ls"],
        env={**os.environ, **wrong_password(locked_etcd)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert_one_sentence(done.stderr)
    assert "MESH_ETCD_PASSWORD" in done.stderr
    assert "s3cret" not in done.stderr


def test_wrong_etcd_password_is_told_to_a_client(locked_etcd: Etcd) -> None:
    error = call(Settings.from_env(wrong_password(locked_etcd)), 2.0)

    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert_one_sentence(error.details() or "")
    assert "password" in (error.details() or "").lower()
    assert "s3cret" not in (error.details() or "")


def test_service_with_a_wrong_etcd_password_serves_and_says_so(locked_etcd: Etcd, tmp_path: Path) -> None:
    with service(tmp_path, "sqlite:///users.db", locked_etcd, **wrong_password(locked_etcd)) as running:
        wait_ready(running)
        told = wait_told(running, "MESH_ETCD_PASSWORD")

    assert "s3cret" not in told
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["", "a/b", "../etc", "a..b", "a\0b", "x" * 300])
def test_service_name_that_is_none_is_refused_when_connecting(name: str) -> None:
    with pytest.raises(ValueError, match="no service name"):
        mesh.connect(name, settings=Settings())
