"""Abusive HTTP/2 and HTTP/1 peers at the edge: other callers hardly notice, and Envoy's memory stays bounded."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.http1 import Client
from support.load import Outcome, Report
from support.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.xdist_group("stack")]

SECONDS = 5.0
RATE = 100.0
CONNECTIONS = {"rapid_reset": 4, "ping_flood": 4, "settings_flood": 4, "zero_window": 10, "slow_headers": 200}


@contextmanager
def abuse(address: str, way: str) -> Iterator[None]:
    """Abuse the edge from another process."""
    command = [sys.executable, "-m", "support.abuse", address, way, str(CONNECTIONS[way])]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert int(process.stdout.readline()) >= CONNECTIONS[way]
            yield
        finally:
            process.kill()


async def measure(address: str) -> Report:
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
    return Report("edge", calls)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.parametrize("way", CONNECTIONS)
def test_other_callers_hardly_notice(way: str, stack: Stack) -> None:
    envoy = stack.process("envoy").pid
    asyncio.run(measure(stack.edge))  # warm
    before, held = asyncio.run(measure(stack.edge)), memory(envoy)

    with abuse(stack.edge, way):
        during, grown = asyncio.run(measure(stack.edge)), memory(envoy) - held

    print(f"{way}: before {before}; during {during}; memory +{grown / 1e6:.0f} MB")
    assert not during.failed, during
    assert grown <= 100_000_000
    assert during.percentile(0.99) <= 2 * before.percentile(0.99)
