"""The road through Envoy with real parts, each a process: etcd, UserService instances, the control plane, Envoy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from mesh.instance import Endpoint
from support.entrances import ask
from support.envoy import Envoy
from support.etcd import Etcd
from support.ports import free_port

_STOP = 15.0


class Process:
    """A Python program of the mesh, with its log, ended with the test."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str], *command: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "OTEL_", "USERS_"))}
        self._env = kept | dict(environment)
        self._command = [sys.executable, "-m", *command]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._env, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal and do not wait."""
        os.kill(self.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for the end."""
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(_STOP)
            finally:
                self._process.kill()
                self._process.wait()
            self._process = None


class Edge:
    """Three instances behind a control plane and an Envoy. `with` starts all of it, each test has its own."""

    def __init__(self, folder: Path, etcd: Etcd, instances: int = 3) -> None:
        self.environment = {
            "MESH_ETCD": etcd.endpoint,
            "MESH_PREFIX": f"mesh-{uuid.uuid4().hex[:8]}",
            "USERS_DATABASE": f"sqlite:///{folder}/users.db",
        }
        self._folder = folder
        self.instances = [self._instance(number) for number in range(1, instances + 1)]
        self.control_plane = Endpoint("127.0.0.1", free_port())
        self.metrics = f"127.0.0.1:{free_port()}"
        self.plane = Process(
            folder,
            "control-plane",
            self.environment | {"MESH_METRICS": self.metrics},
            "mesh",
            "control-plane",
            "--listen",
            str(self.control_plane),
        )
        self.envoy = Envoy(folder, self.control_plane)

    def _instance(self, number: int) -> Process:
        own = {"MESH_INSTANCE_ID": f"users-{number}", "MESH_LISTEN": f"127.0.0.1:{free_port()}"}
        return Process(self._folder, f"users-{number}", self.environment | own, "usersvc")

    @property
    def address(self) -> str:
        """Where callers go."""
        return str(self.envoy.edge)

    def __enter__(self) -> Self:
        try:
            for process in (*self.instances, self.plane):
                process.start()
            self.envoy.start()
            self.envoy.wait_ready(60)
            wait_until(lambda: self.healthy() == len(self.instances), "all instances are healthy in Envoy")
            assert ask(self.address, "GET", "/v1/users").status == 200
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything."""
        self.envoy.stop()
        for process in (self.plane, *self.instances):
            process.end(signal.SIGKILL)

    def healthy(self) -> int:
        """Instances that Envoy gives calls to."""
        return self.envoy.stats("cluster.users.v1.UserService.membership_healthy").get(
            "cluster.users.v1.UserService.membership_healthy", 0
        )

    def metric(self, name: str) -> float:
        """A counter of the control plane, over all its labels."""
        import urllib.request

        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def wait_until(condition: Callable[[], bool], claim: str, seconds: float = 60.0) -> None:
    """Return once the condition holds; fail after a while. Who cannot be reached yet has not fulfilled it."""
    end = time.monotonic() + seconds
    while not _holds(condition):
        assert time.monotonic() < end, f"not so after {seconds} s: {claim}"
        time.sleep(0.02)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except OSError:
        return False
