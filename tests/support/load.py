"""A steady load on some roads, the mesh client ("mesh", and its twin "blocking") and Envoy ("edge"), while a test
breaks things; and what became of every call.

Open loop: a call begins at its moment on the schedule, whatever has become of those before it. Each road has its own
process (`support.loadgen`), so that neither the test nor the other road is in its way. The mix is seven reads to three
writes; every write carries a `request_id`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

START_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call: its moment (time.monotonic, the same in every process), seconds taken, what it was, and the result."""

    start: float
    seconds: float
    kind: str
    code: str
    detail: str


@dataclass
class Report:
    """Every call of one road."""

    road: str
    calls: Sequence[Outcome]

    @property
    def failed(self) -> list[Outcome]:
        """The calls that did not end well."""
        return [call for call in self.calls if call.code != "OK"]

    def percentile(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """Seconds that `share` of the calls begun in a stretch of time did not exceed."""
        taken = sorted(call.seconds for call in self.calls if since <= call.start < until)
        return taken[min(int(share * len(taken)), len(taken) - 1)]

    def __str__(self) -> str:
        text = (
            f"{self.road}: {len(self.calls)} calls, {len(self.failed)} failed, p50 {self.percentile(0.5) * 1e3:.1f} ms,"
            f" p99 {self.percentile(0.99) * 1e3:.1f} ms, max {self.percentile(1.0) * 1e3:.0f} ms"
        )
        kinds = Counter((call.kind, call.code, call.detail[:200]) for call in self.failed)
        first = self.calls[0].start if self.calls else 0.0
        return "\n".join(
            [text]
            + [f"  {count} x {kind}: {code} {detail}" for (kind, code, detail), count in kinds.most_common(8)]
            + [f"  at {call.start - first:.3f} s for {call.seconds:.3f} s: {call.kind}" for call in self.failed[:8]]
        )


@dataclass
class Load:
    """The load on some roads, from `with` to its end. `reports` are there afterwards.

    Everything the generator needs is in `environment` (MESH_*) and the edge's address and TLS files.
    """

    out: Path
    environment: Mapping[str, str]
    edge: str
    tls: Mapping[str, str] | None = None
    rate: float = 200.0
    roads: Sequence[str] = ("mesh", "edge")
    deadline: float | None = None
    """Seconds that a call may take; None leaves it to the policies, and gives up at the edge after a long while."""
    reports: dict[str, Report] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        try:
            for road in self.roads:
                self._running[road] = self._start(road)
            for road, process in self._running.items():
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n", f"{road}: {self._log(road).read_text()}"
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._kill()

    def ask(self, road: str, order: str = "state") -> dict[str, Any]:
        """Have a road's process tell of itself (`support.callers.State`), "rest" before that, "go" on, or call at
        another "rate=…"; or tell only of its "view" of instances.
        """
        process = self._running[road]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{order}\n".encode())
        process.stdin.flush()
        told: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
        assert told, f"{road}: {self._log(road).read_text()}"
        return told

    def check(self) -> None:
        """Fail the test if any call failed, telling which and how."""
        story = "\n".join(str(report) for report in self.reports.values())
        print(story)
        assert not any(report.failed for report in self.reports.values()), f"calls failed\n{story}"

    def _start(self, road: str) -> subprocess.Popen[bytes]:
        job = {
            "road": road,
            "rate": self.rate,
            "edge": self.edge,
            "tls": self.tls,
            "deadline": self.deadline,
            "out": str(self._result(road)),
        }
        here = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, **self.environment, "PYTHONPATH": here}
        with self._log(road).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "support.loadgen", json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
            )

    def _finish(self) -> None:
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()  # the sign to stop
        for road, process in self._running.items():
            assert process.wait(timeout=60) == 0, f"{road}: {self._log(road).read_text()}"
            rows: list[list[Any]] = json.loads(self._result(road).read_bytes())
            self.reports[road] = Report(road, [Outcome(*row) for row in rows])

    def _kill(self) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _result(self, road: str) -> Path:
        return self.out / f"load-{road}.json"

    def _log(self, road: str) -> Path:
        return self.out / f"load-{road}.log"
