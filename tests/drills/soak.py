"""An hour of calls on every road with a random fault a minute. The seed decides which; the same one repeats the run.

A fault's minute lasts until the next one begins, and its calls are judged by the fault's own rule; so no call is left
out. p99, goodput and how soon calls are refused are for the drills: they need a calm before, or a load, of their own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGCONT, SIGTERM

from drills import invariants
from drills.drill import REGISTRY, Tell
from drills.fault import AMPLIFIED, Fault, Rule
from drills.judging import broken_by, note_attempts
from drills.site import Setup, Site
from support.load import Report

# One etcd, behind a proxy as one of the instances is; the faults that strike an instance itself strike another one.
SETUP = Setup(proxied=1, etcd_proxied=True)
_LONGEST = 55.0


@dataclass(frozen=True)
class Minute:
    """A fault's time: from `begin` to the next one's; what its story found, and what it missed."""

    name: str
    rule: Rule
    begin: float
    injected: float = 0.0
    healed: float = float("inf")
    missed: Sequence[str] = ()
    drained: float | None = None
    short: bool = True


async def soak(folder: Path, minutes: float, seed: int, *, rate: float = 50.0, summary: Path | None = None) -> bool:
    """Run it; print what happens, and write it to `summary`; say whether every fault was borne as its rule asks for,
    and the invariants held.
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
    site = Site(folder, replace(SETUP, rate=rate), short=True)
    passed = [Minute("the calm before", Rule(), 0.0)]
    async with site:
        await site.steady(2.0)
        before = await invariants.baseline(site)
        calm = site.tallies()
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            minute = await _minute(site, dice.choice(faults))
            passed.append(minute)
            took = f"{time.monotonic() - minute.begin:.0f} s"
            told = f", missed: {'; '.join(minute.missed)}" if minute.missed else ""
            tell(f"{len(passed) - 1:3} {minute.name}: {took}{told}")
            await site.steady(max(0.0, min(minute.begin + 60.0, end) - time.monotonic()))
        site.facts.clear()
        await invariants.check(site, before)
        for road, tally in site.tallies().items():
            site.fact(f"attempts per call on {road}", tally.since(calm[road]).amplification, AMPLIFIED, road)
        reports = await site.finish()
    for report in reports.values():
        tell(str(report))
    broken = [str(fact) for fact in site.facts if not fact.met]
    missed = verdict(passed, reports)
    for line in missed:
        tell(f"missed: {line}")
    hold = f"broken: {'; '.join(broken)}" if broken else "hold"
    tell(f"seed {seed}: {len(missed) or 'nothing'} missed, invariants {hold}")
    return not missed and not broken


def verdict(passed: Sequence[Minute], reports: Mapping[str, Report]) -> list[str]:
    """Say what was missed, a sentence for each minute, road and rule."""
    found = []
    ends = [minute.begin for minute in passed[1:]] + [float("inf")]
    for number, (minute, end) in enumerate(zip(passed, ends, strict=True)):
        found += [f"{number} {minute.name}: {what}" for what in minute.missed]
        for road, report in reports.items():
            calls = [call for call in report.calls if minute.begin <= call.start < end]
            told = broken_by(minute.rule, minute, Report(road, calls))
            found += [f"{number} {minute.name}, {road}: {what}" for what in told]
    return found


async def _minute(site: Site, fault: Fault) -> Minute:
    site.facts.clear()
    rule = replace(fault.rule, p99_factor=None, goodput=None, refusals=None, calls=None)
    begin = site.injected = time.monotonic()
    site.healed, site.borne = float("inf"), {}
    missed = []
    for step in (fault.story, _as_it_was):
        try:
            async with asyncio.timeout(_LONGEST):
                await step(site)
        except (AssertionError, RuntimeError, TimeoutError) as e:
            missed.append(f"{type(e).__name__} {e}")
    note_attempts(rule, site)
    missed += [f"{'/'.join(fact.roads)} {fact}" for fact in site.facts if not fact.met]
    return Minute(fault.name, rule, begin, site.injected, site.healed, missed)


async def _as_it_was(site: Site) -> None:
    """Take away what a story has added, and heal what one that ended early has left sick."""
    for member in site.members:
        member.sicken()
    for proxy in (site.etcd_proxy, *(member.proxy for member in site.members)):
        if proxy is not None:
            proxy.refuse = proxy.swallow = False
            proxy.latency = 0.0
    site.plane_is_sick.unlink(missing_ok=True)
    if not site.etcd.running:
        await asyncio.to_thread(site.etcd.start)
    for process in (site.plane, *(member.process for member in site.members[: site.setup.instances])):
        if process.running:
            process.send(SIGCONT)
        else:
            process.start()
    for member in site.members[site.setup.instances :]:
        await asyncio.to_thread(member.process.end, SIGTERM)
        site.members.remove(member)
    await site.until(lambda: set(site.listed().values()) == site.living(), 30, "all are registered again")
