"""`mesh up`, really: what it prints is true, what ends comes back, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from support import grpcurl
from support.etcd import Etcd
from support.stack import Stack

pytestmark = pytest.mark.stack

BIN = Path(sys.executable).parent
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def shell(script: str, env: Mapping[str, str] | None = None) -> str:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", script], env=os.environ | {"PATH": path} | (env or {}), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def offered(output: str, title: str) -> str:
    """Return what is under a title in the output of `mesh up`."""
    return output.split(f"\n# {title}\n", 1)[1].split("\n\n", 1)[0]


def processes_of(data: Path) -> list[int]:
    """Return the processes that carry a stack's mark."""
    mark, found = f"MESH_STACK={data.resolve()}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module", params=["plain", "tls"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    options = ["--tls"] if request.param == "tls" else []
    with Stack(tmp_path_factory.mktemp(request.param) / "mesh", "-n", "2", *options) as stack:
        yield stack


def test_one_table_names_every_process_with_its_address_and_pid(running: Stack) -> None:
    running.wait_whole()
    rows = [line.split() for line in running.output.splitlines() if re.search(r"  ready  .*:\d+ +\d+$", line)]
    assert [row[0] for row in rows] == ["etcd", "users-1", "users-2", "control-plane", "envoy"]
    for row in rows:
        address = {"envoy": running.edge, "etcd": running.etcd, "control-plane": running.control_plane}.get(row[0])
        assert row[1] == "ready"
        assert address in (row[2], None)


def test_the_curl_it_offers_creates_a_user(running: Stack) -> None:
    created = json.loads(shell(offered(running.output, "curl").replace("ada@", f"{time.time_ns()}@")))
    assert created["name"] == "Ada"


def test_the_grpcurl_it_offers_lists_users(running: Stack) -> None:
    path = f"{BIN}{os.pathsep}{Path(grpcurl.binary()).parent}{os.pathsep}{os.environ['PATH']}"
    shell(offered(running.output, "grpcurl"), env={"PATH": path})


def test_the_python_client_it_offers_runs_as_printed(running: Stack) -> None:
    shell(offered(running.output, "curl").replace("ada@", f"{time.time_ns()}@"))
    assert 'name: "Ada"' in shell(offered(running.output, "Python"))


def test_mesh_ls_finds_it_by_its_folder(running: Stack) -> None:
    listed = json.loads(shell(f"mesh ls --json --data {running.data}"))
    assert [i["id"] for i in listed[0]["instances"]] == ["users-1", "users-2"]


def test_a_killed_instance_comes_back_and_it_is_said(running: Stack) -> None:
    running.wait_whole()
    before = running.process("users-2")
    os.kill(before.pid, signal.SIGKILL)
    running.wait_other("users-2", before.pid)
    assert "users-2        was killed by SIGKILL after" in running.output
    assert "users-2        ready again after" in running.output


@pytest.mark.parametrize("name", ["etcd", "control-plane", "envoy"])
def test_every_part_comes_back_where_it_was(running: Stack, name: str) -> None:
    running.wait_whole()
    before = running.process(name)
    os.kill(before.pid, signal.SIGKILL)
    running.wait_other(name, before.pid)
    assert running.process(name).address == before.address


def test_a_second_one_in_the_folder_is_refused(running: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "up", "--data", str(running.data)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"mesh: another `mesh up` (pid {running.pid}) uses {running.data}: stop it or choose --data\n"
    )


def test_a_taken_port_is_refused_before_anything_starts(running: Stack, tmp_path: Path) -> None:
    for option, address in (
        ("--port", running.edge), ("--etcd-port", running.etcd),
        ("--control-plane-port", running.control_plane), ("--admin-port", running.admin),
    ):  # fmt: skip
        ports = {"--port": "0", "--etcd-port": "0", "--control-plane-port": "0", "--admin-port": "0"}
        ports[option] = address.rpartition(":")[2]
        words = [word for pair in ports.items() for word in pair]
        command = [sys.executable, "-m", "mesh", "up", "--data", str(tmp_path / "other"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"mesh: {address} is taken by another program: stop it or choose {option}")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--tls"]], ids=["plain", "tls"])
def test_ctrl_c_ends_all_of_it_in_order_and_the_folder_can_be_used_again(tmp_path: Path, options: list[str]) -> None:
    data = tmp_path / "mesh"
    for _ in range(2):
        with Stack(data, "-n", "2", *options) as stack:
            assert len(processes_of(data)) >= 5
            assert stack.stop() == 0
            left = re.findall(r"^\S+  (\S+) +left$", stack.output, re.MULTILINE)
            assert left[0] == "envoy"
            assert sorted(left[1:3]) == ["users-1", "users-2"]
            assert left[3:] == ["control-plane", "etcd"]
        assert processes_of(data) == []
        assert not (data / "stack.json").exists()
        assert not (data / "env").exists()


def test_nothing_survives_a_mesh_up_that_is_killed_and_the_next_one_starts_at_once(tmp_path: Path) -> None:
    data = tmp_path / "mesh"
    with Stack(data, "-n", "2") as stack:
        os.kill(stack.pid, signal.SIGKILL)
        _until_gone(data)
    (data / "stack.json").unlink()  # or this test would take it for news of the next one
    with Stack(data, "-n", "2") as stack:
        assert stack.stop() == 0


def test_it_uses_an_etcd_that_runs_already_and_leaves_it_alone(tmp_path: Path, etcd: Etcd) -> None:
    env = {"MESH_PREFIX": tmp_path.name}
    with Stack(tmp_path / "mesh", "-n", "1", "--etcd", etcd.endpoint, env=env) as stack:
        assert stack.etcd == etcd.endpoint
        assert "etcd" not in [process.name for process in stack.processes]
        assert stack.stop() == 0
    assert etcd.healthy()
    assert etcd.ctl("get", "--prefix", "--keys-only", f"{tmp_path.name}/services/").strip() == ""


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    data = tmp_path / "mesh"
    with Stack(data, "-n", "1", "--", "sh", "-c", f"trap '' TERM; {sys.executable} -m usersvc; sleep 60") as stack:
        os.kill(stack.pid, signal.SIGINT)
        _until(lambda: "stopping" in stack.output)
        began = time.monotonic()
        assert stack.stop() == 130
        assert time.monotonic() - began < 5
        assert "mesh           killed" in stack.output
    _until_gone(data)


def test_on_a_terminal_progress_gives_way_to_the_table(tmp_path: Path) -> None:
    """Seen through a pseudo terminal, as a person would."""
    parent, child = pty.openpty()
    ports = ["--port", "0", "--etcd-port", "0", "--control-plane-port", "0", "--admin-port", "0"]
    command = [sys.executable, "-m", "mesh", "up", "-n", "1", "--data", str(tmp_path / "mesh"), *ports]
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=env, start_new_session=True) as up:
        os.close(child)
        told = _read(parent, "Ctrl-C stops everything in order.")
        up.send_signal(signal.SIGINT)
        told += _read(parent, "stopped")
        assert up.wait(20) == 0
    os.close(parent)
    assert "\x1b[" in told
    progress, _, rest = ANSI.sub("", told).partition("PROCESS")
    assert "Starting the mesh" in progress
    assert "✓" in progress
    assert "Starting the mesh" not in rest
    assert "Traceback" not in told


def _read(terminal: int, until: str) -> str:
    told, end = "", time.monotonic() + 40
    while until not in told:
        assert time.monotonic() < end, told
        if select.select([terminal], [], [], 0.5)[0]:
            told += os.read(terminal, 65536).decode(errors="replace")
    return told


def _until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def _until_gone(data: Path) -> None:
    _until(lambda: processes_of(data) == [], 5.0)
