"""Where rows are measured: a folder of their own, the processes that they start, and what the person sees meanwhile.

Whatever was started here has ended when the site is closed, also after Ctrl-C. Our own children (`bench.child`,
`bench.serving`) end by themselves when their stdin closes, so that even a killed bench leaves none of them behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench import ROOT
from bench.cores import Cores
from bench.measure import ROUNDS, Samples, cpu_ns, memory_mb

_PATIENCE = 30.0


class ChildFailed(RuntimeError):
    """A child process ended too early; the text has its last words."""


class Process:
    """A child process: an arm's server, a rival, a load generator."""

    def __init__(self, argv: Sequence[str], *, name: str, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name, self._log = name, log
        with log.open("wb") as stderr:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                # Ctrl-C is for the bench, which then ends its children in order.
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def cpu_ns(self) -> int:
        """Return the CPU time that it has used."""
        return cpu_ns(self.pid)

    def memory_mb(self) -> float:
        """Return its resident memory."""
        return memory_mb(self.pid)

    def line(self) -> str:
        """Return the next line it prints. Raises ChildFailed if it ends instead."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line.endswith("\n"):  # nothing, or all that it came to say of a line
            self._popen.wait(_PATIENCE)
            raise ChildFailed(f"{self.name} ended ({self._popen.returncode}): {self.last_words()}")
        return line.strip()

    def ask(self, line: str) -> str:
        """Write it a line and return its answer."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()
        return self.line()

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr."""
        return self._log.read_text(errors="replace")[-2000:].strip() or "it said nothing"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def stop(self, grace: float = 5.0) -> None:
        """End it, by force if it does not go."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(grace)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back for a moment: a process that is forked and not yet written down would be left behind."""
    if threading.current_thread() is not threading.main_thread():  # where no signal's handler runs
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


class Site:
    """What a row is given. `quick` asks for the same in less time; `scale` is for tests: next to nothing."""

    def __init__(self, *, quick: bool = False, scale: float = 1.0, tell: Callable[[str], None] = print) -> None:
        self.quick = quick
        self.scale = scale
        self._tell = tell
        self._began = time.monotonic()
        self._home = tempfile.TemporaryDirectory(prefix="bench-")
        self.folder = Path(self._home.name)
        self._processes: list[Process] = []
        self.label = ""

    @property
    def rounds(self) -> int:
        """How many rounds a comparison has: at least 20, but in the harness's own test."""
        return max(2, round((ROUNDS if not self.quick else 20) * min(1.0, self.scale)))

    def calls(self, number: int) -> int:
        """How many calls there are in the harness's own test, where a run has `number`, a quick one too: short blocks
        have more of what who ran before has left, and other ratios.
        """
        return max(2, round(number * self.scale))

    def tell(self, what: str) -> None:
        """Show a line of progress."""
        self._tell(f"[{time.monotonic() - self._began:5.0f} s] {self.label}: {what}")

    def start(self, argv: Sequence[str], *, name: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a process; it ends with the site, if not before. Its stdout is read with `line()`."""
        log = self.folder / f"{name}-{len(self._processes)}.log"
        with _uninterrupted():
            process = Process(argv, name=name, log=log, env=env)
            self._processes.append(process)
        return process

    def python(self, *args: str, name: str, env: Mapping[str, str] | None = None) -> Process:
        """Start this Python with arguments."""
        return self.start([sys.executable, *args], name=name, env=env)

    def serve(self, kind: str, *args: str, name: str = "") -> tuple[Process, str]:
        """Start one of the servers of `bench.serving`; return it and its address."""
        process = self.python("-m", "bench.serving", kind, *args, name=name or f"server-{kind}")
        return process, process.line()

    def compare(
        self,
        arms: str,
        job: Mapping[str, Any],
        *,
        calls: int,
        rounds: int = 0,
        processes: int = 6,
        cores: Cores = "any",
    ) -> Samples:
        """Run the rounds in fresh child processes and return all their samples.

        `arms` names "module:function", an async context manager that takes the job and yields the baseline arm and a
        dict of the others. Several processes, because where things lie in memory differs from one to the next and
        costs or saves some per cent for all of its life: six are what an interval needs (`bench.measure.interval`), and
        half of them will do where nothing but the ratio is asked. Many `rounds` of short blocks say more than few of
        long ones, where a block is cheap to begin. `cores` says who works where (`bench.cores`).
        """
        samples = Samples()
        processes = -(-processes // (2 if self.quick else 1)) if self.scale == 1.0 else 1
        asked = rounds // (3 if self.quick else 1) if rounds and self.scale == 1.0 else self.rounds
        each = -(-asked // processes)
        for number in range(processes):
            order = {"arms": arms, "job": dict(job), "calls": self.calls(calls), "rounds": each}
            order |= {"cores": cores, "beside": [process.pid for process in self._processes]}
            samples.extend(Samples.of_json(self.child(order, name=f"{arms.rpartition(':')[2]}-{number}")))
        return samples

    def child(self, order: Mapping[str, Any], *, name: str, env: Mapping[str, str] | None = None) -> Any:
        """Have a fresh Python process carry out an order (see `bench.child`) and return what it tells, from JSON."""
        process = self.python("-m", "bench.child", json.dumps(order), name=name, env=env)
        try:
            return json.loads(process.line())
        finally:
            self.stop(process)

    def stop(self, process: Process) -> None:
        """End one process now."""
        process.stop()
        if process in self._processes:
            self._processes.remove(process)

    def sweep(self) -> None:
        """End every process that is left, the last first. Between rows: no row pays for another's."""
        for process in reversed(self._processes):
            process.signal(signal.SIGCONT)
            process.stop()
        self._processes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sweep()
        self._home.cleanup()
