"""One supervised process of the local stack: started, probed until ready, started again when it ends, asked to leave.

`Process.keep` is the loop; what is decided (how long to pause, what an exit means) are the plain functions below it.
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.cli.failure import MISUSED, Failure
from mesh.cli.leash import Guard, tie
from mesh.clock import Clock

# First pause before a process that ended is started again; doubled while it keeps ending young.
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
# A process that lived so long was well; its next end is news, not a loop.
_GROWN_UP = 10.0
_HOLD_PERIOD = 0.1
# What a process that was asked to leave may end with: 0, or SIGTERM itself, as its parent or a shell tells it.
_LEFT = (0, -signal.SIGTERM, 128 + signal.SIGTERM)
# How long the rest of a group may take once its leader has left.
_STRAGGLERS = 1.0


class Phase(enum.StrEnum):
    """Where a process is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    ENDED = "ended"
    """By itself; it is started again after a pause."""
    LEAVING = "leaving"
    GONE = "gone"
    """For good."""


@dataclass(frozen=True, slots=True)
class Event:
    """A process has changed its phase. `text` says how, for people; `after` is the seconds since it was started."""

    name: str
    phase: Phase
    text: str = ""
    after: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to run and how to know that it works.

    probe: returns the address that it serves, once it does; given the process, cancelled if that ends first.
    grace: seconds between SIGTERM and SIGKILL.
    hold: while this file exists, a process that ended is not started again.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    hold: Path
    probe: Callable[[Process], Awaitable[str]]
    grace: float = 5.0


class Process:
    """A process that is kept running until `leave` or `kill`. Used from one event loop, in the thread that forks."""

    def __init__(self, spec: Spec, *, guard: Guard, clock: Clock, tell: Callable[[Event], None]) -> None:
        self.spec = spec
        self.phase = Phase.WAITING
        self.pid: int | None = None
        self.address = ""
        self.spawned_at = 0.0
        """Seconds since 1970; what registers itself as older is not this process."""
        self.was_ready = asyncio.Event()
        self._guard = guard
        self._clock = clock
        self._tell = tell
        self._child: asyncio.subprocess.Process | None = None
        self._begun = 0.0
        self._wanted = True
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The name of its row, its log and its hold file."""
        return self.spec.name

    @property
    def age(self) -> float:
        """Seconds since it was last started; 0 if it never was."""
        return self._clock.monotonic() - self._begun if self._begun else 0.0

    def start(self) -> asyncio.Task[None]:
        """Begin to keep it running. The task fails with Failure if it cannot run or ends before it was ever ready."""
        self._task = asyncio.create_task(self.keep(), name=f"keep {self.name}")
        return self._task

    async def keep(self) -> None:
        """Run it again and again until it is no longer wanted."""
        short_lives = 0
        while self._wanted:
            await self._spawn()
            code = await self._live()
            lived = self.age
            if not self._wanted:
                return
            if not self.was_ready.is_set():
                self._turn(Phase.GONE, told_exit(code))
                raise Failure(
                    f"{self.name} {told_exit(code)} before it was ready: see {self.spec.log}", hint=tail(self.spec.log)
                )
            short_lives = 0 if lived >= _GROWN_UP else short_lives + 1
            pause = pause_before_restart(short_lives)
            self._turn(Phase.ENDED, f"{told_exit(code)} after {told_seconds(lived)}, again in {pause:g} s")
            await self._rest(pause)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; harmless when it has ended."""
        if self._child is not None and self._child.returncode is None:
            with suppress(ProcessLookupError):
                self._child.send_signal(number)

    async def leave(self) -> None:
        """Ask it to leave, wait for its grace, then insist. Returns when it and all it started have ended."""
        running = self._stop_wanting()
        if running is not None:
            self._turn(Phase.LEAVING)
            self.signal(signal.SIGTERM)
            try:
                code = await asyncio.wait_for(running.wait(), self.spec.grace)
                text = "left" if code in _LEFT else told_exit(code)
                await self._sweep(running.pid)
            except TimeoutError:
                text = f"was killed: it did not leave within {self.spec.grace:g} s"
                _kill_group(running.pid)
                await running.wait()
            self._turn(Phase.GONE, text)
        await self._finish()

    async def kill(self) -> None:
        """End it at once."""
        running = self._stop_wanting()
        if running is not None:
            _kill_group(running.pid)
            await running.wait()
            self._turn(Phase.GONE, "was killed")
        await self._finish()

    async def _spawn(self) -> None:
        self._begun, self.spawned_at = self._clock.monotonic(), self._clock.time()
        self.address = ""
        try:
            with self.spec.log.open("ab") as log:
                self._child = await asyncio.create_subprocess_exec(
                    *self.spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(self.spec.env),
                    start_new_session=True,  # Ctrl-C is for us; they are told to leave in order
                    preexec_fn=tie(),
                )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as e:
            self._turn(Phase.GONE, "cannot run")
            raise Failure(f"cannot run {self.spec.argv[0]}: {e.strerror}: check the command", code=MISUSED) from e
        except OSError as e:
            raise Failure(f"cannot start {self.name}: {e.strerror}: see {self.spec.log}") from e
        self.pid = self._child.pid
        self._guard.hold(self._child.pid)
        self._turn(Phase.STARTING)

    async def _live(self) -> int:
        """Probe until ready and wait for the end; return the exit code."""
        child = self._child
        assert child is not None
        ended = asyncio.create_task(child.wait())
        ready = asyncio.ensure_future(self.spec.probe(self))
        try:
            await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ended.done():
                self.address = ready.result()
                self.was_ready.set()
                self._turn(Phase.READY)
            code = await ended
        finally:
            for task in (ended, ready):
                task.cancel()
        if self._wanted:  # whatever it left behind must not hold its port or its files
            _kill_group(child.pid)
            self._guard.drop(child.pid)
            self.pid = None
        return code

    async def _rest(self, pause: float) -> None:
        await self._clock.sleep(pause)
        while self._wanted and self.spec.hold.exists():
            await self._clock.sleep(_HOLD_PERIOD)

    def _stop_wanting(self) -> asyncio.subprocess.Process | None:
        """Never start it again; return it if it runs."""
        self._wanted = False
        child = self._child
        if child is None or child.returncode is not None:
            return None
        return child

    async def _sweep(self, group: int) -> None:
        """The leader has left: end the rest of its group, kindly first."""
        patience = self._clock.monotonic() + _STRAGGLERS
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGTERM)
            while self._clock.monotonic() < patience:
                os.killpg(group, 0)
                await self._clock.sleep(0.02)
            os.killpg(group, signal.SIGKILL)

    async def _finish(self) -> None:
        if self.pid is not None:
            self._guard.drop(self.pid)
        self.pid = None
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait({self._task})

    def _turn(self, phase: Phase, text: str = "") -> None:
        self.phase = phase
        self._tell(Event(self.name, phase, text, self.age))


def pause_before_restart(short_lives: int) -> float:
    """Return the seconds to wait: 0.2, doubled for each life in a row that was short, 5 at most."""
    return min(_FIRST_PAUSE * 2.0 ** max(0, short_lives - 1), _LONGEST_PAUSE)


def told_exit(code: int) -> str:
    """Say how a process ended."""
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"
    return f"ended with code {code}" if code else "ended"


def told_seconds(seconds: float) -> str:
    """Say a duration: "0.4 s", "12 s", "3 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log, none if there are none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(line[:300] for line in text.splitlines()[-lines:])


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
