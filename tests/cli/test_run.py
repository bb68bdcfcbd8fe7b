"""`mesh run`: a program that knows nothing of the mesh, on it; coming, unwell, leaving, dying."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf import struct_pb2

from support.etcd import Etcd
from support.ports import free_port
from support.stack import Stack

GREETER = str(Path(__file__).with_name("greeter.py"))
SERVICE = "plain.v1.Greeter"


class Run:
    """`mesh run … -- python greeter.py …` against a test's etcd and prefix."""

    def __init__(self, folder: Path, etcd: Etcd, *arguments: str, options: tuple[str, ...] = ()) -> None:
        self._etcd, self._prefix = etcd, folder.name
        self._errors = folder / "run.log"
        self._command = [sys.executable, "-m", "mesh", "run", *options, "--", sys.executable, GREETER, *arguments]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MESH_")}
        self._env = kept | {
            "MESH_ETCD": etcd.endpoint, "MESH_PREFIX": folder.name, "MESH_INSTANCE_ID": "g-1", "MESH_SETTLE": "0.3",
        }  # fmt: skip
        self.process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                self._command, env=self._env, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=self._errors.parent
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # the program is tied to it
        self.process.communicate()

    def child(self) -> int:
        """Return the program's number, which it prints once it serves."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline().removeprefix("pid "))

    def record(self) -> dict[str, Any] | None:
        """Return what is registered, or None."""
        found = self._etcd.ctl("get", "--print-value-only", f"{self._prefix}/services/{SERVICE}/g-1")
        record: dict[str, Any] | None = json.loads(found) if found else None
        return record

    def state(self) -> str | None:
        record = self.record()
        return str(record["Metadata"]["state"]) if record else None

    @property
    def said(self) -> str:
        return self._errors.read_text()


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def test_a_program_is_registered_with_its_contract_once_it_serves(tmp_path: Path, etcd: Etcd) -> None:
    with Run(tmp_path, etcd) as run:
        run.child()
        until(lambda: run.state() == "ready")
        record = run.record()
        assert record is not None
        with grpc.insecure_channel(record["Addr"]) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/Greet", struct_pb2.Struct.SerializeToString, struct_pb2.Struct.FromString
            )
            assert call(struct_pb2.Struct(), timeout=5)["text"] == "Hello, you!"
        digest = record["Metadata"]["contract"]
        assert len(digest) == 64
        assert etcd.ctl("get", "--keys-only", f"{tmp_path.name}/contracts/{digest}").strip().endswith(digest)
        assert f"mesh: {SERVICE} is on the mesh as g-1 at {record['Addr']}" in run.said


def test_it_leaves_the_mesh_before_it_is_told_to_end(tmp_path: Path, etcd: Etcd) -> None:
    with Run(tmp_path, etcd) as run:
        child = run.child()
        until(lambda: run.state() == "ready")
        run.process.send_signal(signal.SIGTERM)
        until(lambda: run.state() == "draining")
        os.kill(child, 0)  # it still serves while others hear of it
        assert run.process.wait(10) == 0
        assert run.state() is None


def test_it_is_paused_while_its_health_is_not_serving(tmp_path: Path, etcd: Etcd) -> None:
    with Run(tmp_path, etcd) as run:
        child = run.child()
        until(lambda: run.state() == "ready")
        os.kill(child, signal.SIGUSR1)
        until(lambda: run.state() == "paused")
        os.kill(child, signal.SIGUSR2)
        until(lambda: run.state() == "ready")


def test_a_hung_program_is_paused_and_comes_back(tmp_path: Path, etcd: Etcd) -> None:
    with Run(tmp_path, etcd) as run:
        child = run.child()
        until(lambda: run.state() == "ready")
        os.kill(child, signal.SIGSTOP)
        until(lambda: run.state() == "paused")
        os.kill(child, signal.SIGCONT)
        until(lambda: run.state() == "ready")


def test_a_program_that_dies_is_deregistered_at_once_and_its_code_passed_on(tmp_path: Path, etcd: Etcd) -> None:
    with Run(tmp_path, etcd) as run:
        child = run.child()
        until(lambda: run.state() == "ready")
        os.kill(child, signal.SIGKILL)
        assert run.process.wait(5) == 128 + 9
        assert run.state() is None  # long before the lease would have ended


def test_the_exit_code_of_a_program_that_never_served_is_passed_on(tmp_path: Path, etcd: Etcd) -> None:
    with Run(tmp_path, etcd, "--exit", "7") as run:
        assert run.process.wait(15) == 7


def test_the_program_dies_with_a_mesh_run_that_is_killed(tmp_path: Path, etcd: Etcd) -> None:
    with Run(tmp_path, etcd) as run:
        child = run.child()
        run.process.kill()
        run.process.wait()
        until(lambda: not _lives(child))


def test_without_reflection_services_are_named_by_option_or_asked_for(tmp_path: Path, etcd: Etcd) -> None:
    with Run(tmp_path, etcd, "--no-reflection") as run:
        assert run.process.wait(15) == 1
        assert run.said == "mesh: the program does not tell its services by reflection: name them with --service\n"
    with Run(tmp_path, etcd, "--no-reflection", options=("--service", SERVICE)) as run:
        run.child()
        until(lambda: run.state() == "ready")
        record = run.record()
        assert record is not None
        assert record["Metadata"]["contract"] == ""


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (
            ("--no-health",),
            (),
            "answers, but its health is not SERVING after 1 s: it needs the standard grpc.health.v1",
        ),
        (
            (),
            ("--address", "ELSEWHERE"),
            "nothing answers gRPC at ELSEWHERE after 1 s: let the program listen on $PORT",
        ),
    ],
)
def test_a_program_that_does_not_serve_is_told_what_is_missing(
    tmp_path: Path, etcd: Etcd, arguments: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    # The program is deaf to --address: with the port taken from it, it listens somewhere else.
    elsewhere = f"127.0.0.1:{free_port()}"
    options = tuple(option.replace("ELSEWHERE", elsewhere) for option in options)
    if options:
        arguments = ("--port", str(free_port()))
    with Run(tmp_path, etcd, *arguments, options=("--timeout", "1", *options)) as run:
        assert run.process.wait(15) == 1
        assert said.replace("ELSEWHERE", elsewhere) in run.said
        assert "Traceback" not in run.said


@pytest.mark.stack
def test_it_is_reached_as_json_at_the_edge_like_any_other(tmp_path: Path) -> None:
    with Stack(tmp_path / "mesh", "-n", "2", "--", "mesh", "run", "--", "python", GREETER) as stack:
        answer = subprocess.check_output(
            ["curl", "-sS", f"http://{stack.edge}/v1/greetings", "-H", "content-type: application/json", "-d", "{}"]
        )
        assert json.loads(answer) == {"text": "Hello, you!"}
        assert [instance.name for instance in stack.instances] == ["greeter-1", "greeter-2"]
        assert stack.stop() == 0


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
