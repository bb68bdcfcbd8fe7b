"""What has to be so after every fault: lists true, no key without an owner, everything given back."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drills.site import CLIENTS, TTL, Site

# Connections come and go with the instances, and grpc keeps a few threads more or less; a leak grows with the calls,
# of which there were thousands.
_FDS, _THREADS = 6, 8
SETTLES = 1.5
"""Seconds that a number of tasks has to stay: mesh.client.connection asks for an instance's health after one."""
# A connection watches its state and its instance's health; the third belongs to the instance.
_OF_A_CONNECTION = 3

Baseline = Mapping[str, Mapping[str, Any]]


async def baseline(site: Site) -> Baseline:
    """Note what callers and instances hold while nothing is called."""
    told: dict[str, Mapping[str, Any]] = {}
    for road in site.roads:
        told[road] = await asyncio.to_thread(site.load.ask, road, "rest")
    told |= {road: await _settled(site, road) for road in site.roads}
    told |= {str(m.process.pid): _held(m.process.pid) for m in site.members}
    for road in site.roads:
        await asyncio.to_thread(site.load.ask, road, "go")
    return told


async def _settled(site: Site, road: str) -> Mapping[str, Any]:
    """What a caller holds once that has been the same for longer than a connection stands before it is asked for the
    health of its instance.
    """
    end, since = time.monotonic() + 10.0, time.monotonic()
    held = await asyncio.to_thread(site.load.ask, road)
    while (now := time.monotonic()) < min(since + SETTLES, end):
        await asyncio.sleep(0.1)
        found = await asyncio.to_thread(site.load.ask, road)
        held, since = (held, since) if found["tasks"] == held["tasks"] else (found, now)
    return held


async def check(site: Site, before: Baseline) -> None:
    """Note as facts whether the invariants hold. Nobody calls from then on."""
    for road in site.roads:
        await asyncio.to_thread(site.load.ask, road, "rest")
    living = site.living()
    await site.measure(
        "keys of the dead gone, and of the living there", lambda: set(site.listed().values()) == living, TTL + 1
    )
    await site.measure_lists("list equals what lives and is in etcd", site.living, TTL + 1)
    end = time.monotonic() + 10.0
    while (left := await _left(site, before)) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    for what, owner, more in left:
        site.fact(f"{what} more than before at {owner}", more, 0, *([owner] if owner in site.roads else []))


async def _left(site: Site, before: Baseline) -> list[tuple[str, str, int]]:
    """What is held beyond the baseline: by asyncio and blocking callers, and by instances that were there all along."""
    found = []
    allowed = {"tasks": 0, "fds": _FDS, "threads": _THREADS}
    # An instance more is a connection more, and what belongs to it.
    grown = max(0, len(site.members) - site.setup.instances)
    for road in CLIENTS:
        if road not in site.roads:
            continue
        now = await asyncio.to_thread(site.load.ask, road)
        for what, slack in allowed.items():
            more = now[what] - before[road][what] - slack - _OF_A_CONNECTION * grown
            found += [(what, road, more)] if more > 0 else []
    for member in site.members:
        pid = str(member.process.pid) if member.process.running else ""
        if pid in before:
            now = _held(member.process.pid)
            for what, had in before[pid].items():
                more = now[what] - had - allowed[what] - 6
                found += [(what, member.id, more)] if more > 0 else []
    return found


def _held(pid: int) -> dict[str, int]:
    """Descriptors and threads of a process."""
    return {"fds": len(os.listdir(f"/proc/{pid}/fd")), "threads": len(os.listdir(f"/proc/{pid}/task"))}


def children() -> set[str]:
    """The processes that this one has started and that still run."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            found.add(pid)
    return found
