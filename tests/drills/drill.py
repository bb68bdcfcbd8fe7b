"""Runs one drill: a site, calls on every road, the story of the fault, the invariants, and rows of what came of it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from drills import invariants, of_etcd, of_instances, of_load, of_surroundings, of_the_rest
from drills.fault import FAULTS, Fault
from drills.judging import Row, rows
from drills.of_instances import CALM
from drills.site import Site

REGISTRY = FAULTS
assert of_etcd
assert of_instances
assert of_load
assert of_surroundings
assert of_the_rest

Tell = Callable[[str], None]


async def run(fault: Fault, *, roads: Sequence[str], short: bool, tell: Tell, keep: bool = False) -> list[Row]:
    """Run a drill in a folder of its own and return its rows; a drill that could not be run to its end is not met."""
    folder = Path(tempfile.mkdtemp(prefix=f"drill-{fault.name}-"))
    roads = [road for road in fault.roads if road in roads]
    before = invariants.children()  # whoever runs us may have some
    site = Site(folder, fault.setup, roads=roads, short=short)
    try:
        found = await _run(fault, site, tell)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    left = invariants.children() - before
    if left:
        for row in found:
            row["missed"].append(f"processes left running: {', '.join(sorted(left))}")
            row["met"] = False
    return found


async def _run(fault: Fault, site: Site, tell: Tell) -> list[Row]:
    async with site:
        tell("calling")
        await site.steady(1.0)
        before = await invariants.baseline(site)
        calm = site.tallies()
        await site.steady(CALM)
        tell("breaking")
        broken = ""
        try:
            await fault.story(site)
        except (AssertionError, RuntimeError) as e:
            broken = str(e)[:300]
        tell("checking")
        await invariants.check(site, before)
        spent = {road: tally.since(calm[road]).amplification for road, tally in site.tallies().items()}
        reports = await site.finish()
        found = rows(fault, site, reports, spent)
    for row in found if broken else ():
        row["missed"].append(f"the drill ended early: {broken}")
        row["met"] = False
    return found


def run_now(fault: Fault, **arguments: Any) -> list[Row]:
    """Run a drill in a loop of its own."""
    return asyncio.run(run(fault, **arguments))
