"""A real local stack, as `mesh up` brings it up, in a folder of a test: every port chosen, everything ended with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# Instances bind port 0, which the kernel chooses from here; what a stack chooses by itself lies below.
NETWORKS = "127.0.0.0/8:32768-65535"
START_TIMEOUT = 90.0  # `mesh up` itself gives up after 60


@dataclass(frozen=True)
class Running:
    """One process of the stack, as stack.json tells it."""

    name: str
    state: str
    pid: int
    address: str
    metrics: str
    log: Path


class Stack:
    """`mesh up` with some arguments, from `with` to its end. Properties are read from stack.json each time."""

    def __init__(
        self, data: Path, *arguments: str, env: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self.data = data
        self._folder = folder
        ports = ("--port", "0", "--etcd-port", "0", "--control-plane-port", "0", "--admin-port", "0")
        self._command = [sys.executable, "-m", "mesh", "up", "--data", str(data), *ports, *arguments]
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._told = data.with_name(f"{data.name}.up.log")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until everything serves."""
        with self._told.open("wb") as out:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            self._wait(lambda: bool(self.told()), START_TIMEOUT, "up")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int:
        """Press Ctrl-C, wait until it has left, and return its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its processes are tied to it and die with it
            self._process.wait()
            raise AssertionError(f"mesh up did not leave: {self.output}") from None

    @property
    def pid(self) -> int:
        """The number of `mesh up` itself."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """What `mesh up` has printed."""
        return self._told.read_text(errors="replace")

    def told(self) -> dict[str, Any]:
        """Return what stack.json says now; empty while there is none."""
        try:
            told: dict[str, Any] = json.loads((self.data / "stack.json").read_text())
        except FileNotFoundError:
            return {}
        return told

    @property
    def edge(self) -> str:
        """The address of Envoy."""
        return str(self.told()["edge"])

    @property
    def etcd(self) -> str:
        """The address of etcd."""
        return str(self.told()["etcd"])

    @property
    def control_plane(self) -> str:
        """The address of the control plane."""
        return str(self.told()["control_plane"])

    @property
    def admin(self) -> str:
        """The address of Envoy's admin page."""
        return str(self.told()["envoy_admin"])

    @property
    def tls(self) -> Mapping[str, str] | None:
        """A client's files "ca", "cert" and "key"; None in plain text."""
        tls: Mapping[str, str] | None = self.told()["tls"]
        return tls

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that point a client at this stack."""
        variables: Mapping[str, str] = self.told()["variables"]
        return variables

    @property
    def processes(self) -> list[Running]:
        """Every process."""
        return [
            Running(
                each["name"], each["state"], each["pid"] or 0, each["address"] or "", each["metrics"], Path(each["log"])
            )
            for each in self.told()["processes"]
        ]

    @property
    def instances(self) -> list[Running]:
        """The instances of the service."""
        others = ("etcd", "control-plane", "envoy")
        return [each for each in self.processes if each.name not in others]

    def process(self, name: str) -> Running:
        """Return a process by name."""
        return next(each for each in self.processes if each.name == name)

    def wait_whole(self, within: float = 30.0) -> None:
        """Wait until every process is ready, by what it answers, not only by what stack.json remembers."""
        self._wait(lambda: all(each.state == "ready" and _lives(each.pid) for each in self.processes), within, "whole")

    def wait_other(self, name: str, pid: int, within: float = 30.0) -> None:
        """Wait until another process than `pid` is ready under a name."""
        self._wait(lambda: self.process(name).pid != pid and self.process(name).state == "ready", within, name)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """While this lasts, a process that ends is not started again."""
        hold = self.data / "hold" / name
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    def _wait(self, condition: Callable[[], bool], within: float, what: str) -> None:
        begin = time.monotonic()
        while not condition():
            assert self._process is not None
            assert self._process.poll() is None, f"mesh up has ended: {self.output}"
            assert time.monotonic() - begin < within, f"{what}: not within {within} s: {self.told()}\n{self.output}"
            time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
