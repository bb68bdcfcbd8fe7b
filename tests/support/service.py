"""EchoService as a process of its own on the mesh, seen from outside: its log, its exit, signals to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

TESTS = Path(__file__).parent.parent
START_TIMEOUT = 30.0


class EchoProcess:
    """`python -m support.echo` under MESH_* settings. `with` starts it and kills what is left of it."""

    def __init__(self, folder: Path, name: str = "echo-1", **settings: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "OTEL_"))}
        self._env: Mapping[str, str] = kept | {"PYTHONPATH": path, "MESH_INSTANCE_ID": name} | settings
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "support.echo"], env=self._env, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def records(self) -> list[dict[str, Any]]:
        """The log so far; a line that is no JSON object fails the test."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for(self, action: str, timeout: float = START_TIMEOUT) -> dict[str, Any]:
        """Wait for a record of the log with this event.action and return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for record in self.records():
                if record.get("event.action") == action:
                    return record
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"{self.name} never said {action!r}:\n{self.log.read_text()}")

    @property
    def address(self) -> str:
        """Where it serves, once it does."""
        return str(self.wait_for("started")["service.address"])

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def exit_code(self, timeout: float) -> int:
        """Wait for its end and return how it ended."""
        return self.process.wait(timeout)
