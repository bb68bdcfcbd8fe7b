"""What an event of etcd costs a process that has slept: a bare stub's and ours."""

from __future__ import annotations

import asyncio
import json

from bench.fleet import MESH, RAW, Fleet
from bench.limits import Figures, limit, share
from bench.measure import alone
from bench.rivals.arena import etcd_of
from bench.site import Process, Site

_EVENTS = 120
_PAUSE = 0.05
"""Seconds between two events: by then whoever hears of them sleeps again."""


@limit("event", "rivals.join, rivals.leave: CPU of a process that is woken for one event of etcd's")
def event(site: Site) -> Figures:
    """A watcher of each kind, alone in its process, in turns."""
    return asyncio.run(_event(site))


async def _event(site: Site) -> Figures:
    with etcd_of(site) as etcd:
        async with Fleet(etcd.endpoint) as fleet:
            watchers: dict[str, Process] = {}
            spent: dict[str, list[float]] = {MESH: [], RAW: []}
            for kind in spent:
                job = {"kind": kind, "etcd": etcd.endpoint, "count": 1}
                watchers[kind] = site.python("-m", "bench.watchers", json.dumps(job), name=kind)
                watchers[kind].line()
            for number in range(share(site, _EVENTS // 3)):
                for kind in list(spent)[:: 1 if number % 2 else -1]:
                    for change in fleet.changes(kind):
                        before = watchers[kind].cpu_ns()
                        await change()
                        await asyncio.sleep(_PAUSE)
                        spent[kind].append((watchers[kind].cpu_ns() - before) / 1e6)
    return {
        "a bare stub of etcd's Watch that reads it": alone(spent[RAW], unit="ms CPU"),
        "our resolver, with a subscriber": alone(spent[MESH], unit="ms CPU"),
    }
