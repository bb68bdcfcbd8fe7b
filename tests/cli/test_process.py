"""One supervised process: probed, started again, asked to leave; and nothing survives its owner."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli.failure import Failure
from mesh.cli.leash import Guard
from mesh.cli.process import Event, Phase, Process, Spec, pause_before_restart, tail, told_exit, told_seconds
from mesh.wallclock import CLOCK

ENDLESS = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ENDLESS!r}])"


class Owner:
    """Makes processes for a test and remembers what they told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.guard = Guard()

    def process(self, code: str, *, grace: float = 5.0, program: str = sys.executable) -> Process:
        async def up(process: Process) -> str:
            while "up" not in tail(process.spec.log).splitlines():
                await asyncio.sleep(0.01)
            return "somewhere"

        spec = Spec(
            name="p",
            argv=(program, "-c", code),
            env=dict(os.environ),
            log=self.folder / "p.log",
            hold=self.folder / "hold",
            probe=up,
            grace=grace,
        )
        return Process(spec, guard=self.guard, clock=CLOCK, tell=self.events.append)

    @property
    def phases(self) -> list[Phase]:
        return [event.phase for event in self.events]


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_started_again_when_killed_and_leaves_when_asked(tmp_path: Path) -> None:
    async def story() -> None:
        owner = Owner(tmp_path)
        process = owner.process(ENDLESS)
        process.start()
        await until(lambda: process.phase is Phase.READY)
        assert process.address == "somewhere"
        first = process.pid
        process.signal(signal.SIGKILL)
        await until(lambda: process.pid not in (first, None) and process.phase is Phase.READY)
        await process.leave()
        assert owner.phases == [
            Phase.STARTING, Phase.READY, Phase.ENDED, Phase.STARTING, Phase.READY, Phase.LEAVING, Phase.GONE,
        ]  # fmt: skip
        assert owner.events[2].text.startswith("was killed by SIGKILL after ")
        assert owner.events[-1].text == "left"
        assert process.pid is None

    asyncio.run(story())


def test_a_held_process_stays_down_until_it_is_let_go(tmp_path: Path) -> None:
    async def story() -> None:
        owner = Owner(tmp_path)
        process = owner.process(ENDLESS)
        process.start()
        await process.was_ready.wait()
        (tmp_path / "hold").touch()
        process.signal(signal.SIGKILL)
        await until(lambda: process.phase is Phase.ENDED)
        await asyncio.sleep(1.0)  # the pause is 0.2 s
        assert process.phase is Phase.ENDED
        (tmp_path / "hold").unlink()
        await until(lambda: process.phase is Phase.READY)
        await process.kill()

    asyncio.run(story())


def test_one_that_ends_before_it_was_ready_fails_with_its_last_words(tmp_path: Path) -> None:
    async def story() -> None:
        process = Owner(tmp_path).process("print('the reason'); raise SystemExit(3)")
        with pytest.raises(Failure) as failed:
            await process.start()
        assert str(failed.value) == f"p ended with code 3 before it was ready: see {tmp_path / 'p.log'}"
        assert failed.value.hint == "the reason"

    asyncio.run(story())


def test_a_program_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    async def story() -> None:
        with pytest.raises(Failure, match=r"^cannot run /nowhere/x: No such file or directory: check the command$"):
            await Owner(tmp_path).process("", program="/nowhere/x").start()

    asyncio.run(story())


def test_who_does_not_leave_is_killed_after_its_grace(tmp_path: Path) -> None:
    async def story() -> None:
        owner = Owner(tmp_path)
        process = owner.process(STUBBORN, grace=0.3)
        process.start()
        await process.was_ready.wait()
        pid = process.pid
        began = time.monotonic()
        await process.leave()
        assert time.monotonic() - began < 3
        assert owner.events[-1].text == "was killed: it did not leave within 0.3 s"
        assert pid is not None
        assert not lives(pid)

    asyncio.run(story())


def test_what_it_has_started_goes_with_it(tmp_path: Path) -> None:
    async def story() -> None:
        process = Owner(tmp_path).process(PARENT)
        process.start()
        await process.was_ready.wait()
        assert process.pid is not None
        [child] = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        await process.leave()
        await until(lambda: not lives(child))

    asyncio.run(story())


OWNER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_process as t

async def main():
    process = t.Owner(Path({folder!r})).process(t.PARENT)
    process.start()
    await process.was_ready.wait()
    children = Path(f"/proc/{{process.pid}}/task/{{process.pid}}/children").read_text()
    print(process.pid, children, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_nothing_survives_an_owner_that_is_killed(tmp_path: Path) -> None:
    code = OWNER.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(lives, pids))
        owner.kill()
        asyncio.run(until(lambda: not any(map(lives, pids))))


def test_pauses_grow_with_every_short_life_and_have_an_end() -> None:
    assert [pause_before_restart(n) for n in range(8)] == [0.2, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_ends_and_times_are_told_in_words() -> None:
    assert told_exit(0) == "ended"
    assert told_exit(3) == "ended with code 3"
    assert told_exit(-9) == "was killed by SIGKILL"
    assert told_exit(-62) == "was killed by signal 62"
    assert [told_seconds(s) for s in (0.04, 9.96, 59.6, 600)] == ["0.0 s", "10.0 s", "60 s", "10 min"]


def test_a_log_is_shown_by_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_bytes(b"\xff\n" * 5000 + b"last but one\nlast\n")
    assert tail(log, 2) == "last but one\nlast"
