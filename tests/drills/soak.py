"""An hour of calls on every road with a random fault a minute. The seed decides which; the same one repeats the run."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

from drills import invariants
from drills.drill import REGISTRY, Tell
from drills.fault import Fault
from drills.site import Setup, Site

# Faults that callers are allowed to notice by their row of the matrix: their failures are counted apart.
_FELT = ("hung", "all-unavailable", "failing")


async def soak(folder: Path, minutes: float, seed: int, *, rate: float = 50.0, summary: Path | None = None) -> bool:
    """Run it; print what happens, and write it to `summary`; say whether no call failed but those that may, and the
    invariants held.
    """
    lines: list[str] = []

    def tell(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        if summary is not None:  # at once: who breaks it off has what came of it until then
            summary.write_text("\n".join(lines) + "\n")

    return await _soak(folder, minutes, seed, rate, tell)


async def _soak(folder: Path, minutes: float, seed: int, rate: float, tell: Tell) -> bool:
    faults = [fault for fault in REGISTRY.values() if fault.soak]
    dice = random.Random(seed)
    tell(f"soak of {minutes:g} min, seed {seed}, of: {', '.join(fault.name for fault in faults)}")
    site = Site(folder, Setup(rate=rate), short=True)
    felt: list[tuple[float, float]] = []
    async with site:
        await site.steady(2.0)
        before = await invariants.baseline(site)
        end = time.monotonic() + 60 * minutes
        number = 0
        while time.monotonic() < end:
            number += 1
            begin = time.monotonic()
            tell(await _one(site, number, dice.choice(faults), felt))
            await site.steady(max(0.0, min(begin + 60.0, end) - time.monotonic()))
        site.facts.clear()
        await invariants.check(site, before)
        reports = await site.finish()
    good = True
    for report in reports.values():
        lost = [call for call in report.failed if not any(a <= call.start <= b for a, b in felt)]
        tell(f"{report}\n  of the failed, {len(lost)} in minutes in which none may")
        good = good and not lost
    broken = [str(fact) for fact in site.facts if not fact.met]
    tell(f"seed {seed}: invariants {'hold' if not broken else 'broken: ' + '; '.join(broken)}")
    return good and not broken


async def _one(site: Site, number: int, fault: Fault, felt: list[tuple[float, float]]) -> str:
    site.facts.clear()
    begin = time.monotonic()
    try:
        async with asyncio.timeout(55):
            await fault.story(site)
        missed = "; ".join(str(fact) for fact in site.facts if not fact.met)
    except (AssertionError, RuntimeError, TimeoutError) as e:
        missed = f"{type(e).__name__} {e}"
    finally:
        for member in site.members:
            member.sicken()
    if fault.name in _FELT:
        felt.append((begin - 1.0, time.monotonic() + 2.0))
    return f"{number:3} {fault.name}: {time.monotonic() - begin:.0f} s {missed and 'missed: ' + missed}"
