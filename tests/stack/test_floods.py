"""Abusive HTTP/2 and HTTP/1 peers at the edge: other callers hardly notice, and Envoy's memory stays bounded."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.http1 import Client
from support.load import Outcome, Report
from support.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.xdist_group("stack")]

# Quiet and abuse take turns, because the p99 of some seconds also tells what else the machine does; the median of their
# ratios is judged. Abusers have the lowest priority: in the world they bring a processor of their own.
TURNS = 7
SECONDS = 2.0
RATE = 200.0
CONNECTIONS = {"rapid_reset": 4, "ping_flood": 4, "settings_flood": 4, "zero_window": 10, "slow_headers": 200}
CONNECTIONS["readers"] = CONNECTIONS["zero_window"]
USERS = 1000


@contextmanager
def abuse(address: str, way: str) -> Iterator[None]:
    """Abuse the edge from another process."""
    command = ["nice", "-n", "19", sys.executable, "-m", "support.abuse", address, way, str(CONNECTIONS[way])]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert int(process.stdout.readline()) >= CONNECTIONS[way]
            yield
        finally:
            process.kill()


async def measure(address: str) -> list[Outcome]:
    """Be another caller for some seconds."""
    client, calls = Client(address), list[Outcome]()
    begin = time.monotonic()

    async def one(due: float) -> None:
        status = (await client.ask("GET", "/v1/users/nobody")).status
        calls.append(Outcome(due, time.monotonic() - due, "get", "OK" if status == 404 else str(status), ""))

    async with asyncio.TaskGroup() as group:
        for number in range(int(SECONDS * RATE)):
            due = begin + number / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(due))
    await client.close()
    return calls


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


async def fill(address: str) -> None:
    """Make users enough for a page of the largest size."""
    client = Client(address)

    async def some(lane: int) -> None:
        for number in range(USERS // 10):
            user = {"name": "A User", "email": f"flood-{lane}-{number}@example.com"}
            assert (await client.ask("POST", "/v1/users", user)).status in {200, 409}

    await asyncio.gather(*map(some, range(10)))
    await client.close()


@dataclass
class Turns:
    """What others saw in turns of quiet and of abuse: times by which their p99 grew, and bytes by which Envoy did."""

    ratios: list[float]
    grown: int

    @property
    def p99(self) -> float:
        """The median of the turns."""
        return statistics.median(self.ratios)


def p99_of_others(stack: Stack) -> float:
    """Seconds; all of their calls have to go well."""
    others = Report("others", asyncio.run(measure(stack.edge)))
    assert not others.failed, others
    return others.percentile(0.99)


def take_turns(stack: Stack, way: str, beside: str = "") -> Turns:
    """Measure without and with abuse; `beside` is what is done instead of nothing."""
    envoy = stack.process("envoy").pid
    p99_of_others(stack)  # warm
    held, turns = memory(envoy), Turns([], 0)
    for _ in range(TURNS):
        with abuse(stack.edge, beside) if beside else nullcontext():
            usual = p99_of_others(stack)
        with abuse(stack.edge, way):
            turns.ratios.append(p99_of_others(stack) / usual)
            turns.grown = max(turns.grown, memory(envoy) - held)
    ratios = " ".join(f"{ratio:.1f}" for ratio in sorted(turns.ratios))
    print(f"{way}: p99 grew {turns.p99:.2f} times ({ratios}), memory by {turns.grown / 1e6:.0f} MB")
    return turns


@pytest.mark.parametrize("way", ["rapid_reset", "ping_flood", "settings_flood", "slow_headers"])
def test_other_callers_hardly_notice(way: str, stack: Stack) -> None:
    turns = take_turns(stack, way)
    assert turns.p99 <= 2, turns.ratios
    assert turns.grown <= 100_000_000


def test_readers_that_take_nothing_cost_others_no_more_than_readers_that_take_all(stack: Stack) -> None:
    # The pages themselves do cost: ten at once, of 1000 users each, are 65 ms of Envoy's transcoding. Whether anybody
    # takes them must make no difference, and what is not taken must not be kept without a bound.
    asyncio.run(fill(stack.edge))
    turns = take_turns(stack, "zero_window", beside="readers")
    assert turns.p99 <= 2, turns.ratios
    assert turns.grown <= 100_000_000
