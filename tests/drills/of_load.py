"""More load than can be borne: three times the knee for a minute, where calls wait for something that is scarce, and
where they compute in the event loop itself.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from drills.fault import Rule, Setup, Site, fault
from drills.of_instances import CALM

_PASSES = "goodput ≥ 80 % of peak meanwhile; normal ≤ 10 s; refusals ≤ 10 ms"
_RULE = Rule(failed=None, goodput=0.8, refusals=0.010, recover_healed=10.0)
# A calm load of half the knee at most, whatever rate was asked for.
_CONNECTIONS, _HELD = 4, 0.1
_BUSY = 0.02
_STEP, _WARM = 4.0, 1.5


@fault(
    "overload",
    "overload 3 × the knee for 60 s",
    _PASSES,
    rule=_RULE,
    setup=Setup(rate=20.0),
    note="each instance has 4 connections of something scarce, and a call holds one for 0.1 s: a knee of 120 calls a"
    " second. The peak is the best of three loads up to it, measured before. Refusals are judged by their median",
)
async def overload(site: Site) -> None:
    await _overloaded(site, 3 * _CONNECTIONS / _HELD, queue=[_CONNECTIONS, _HELD])


@fault(
    "overload-cpu",
    "overload 3 × the knee for 60 s; of the event loop",
    _PASSES,
    rule=_RULE,
    setup=Setup(rate=12.0),
    note="each call computes for 20 ms in the event loop of its instance; with callers, instances and Envoy on the same"
    " cores, of which 60 % are taken for the knee. The peak is the best of three loads up to it, measured before."
    " Refusals are judged by their median, and it is the loop that computes that tells them: a health check, which"
    " nothing limits, took 45 to 71 ms in such a server on a busy machine, and no refusal can be sooner",
    known="a loop that computes tells nobody anything: who comes while a handler holds it for 20 ms, as one nearly"
    " always does here, is seen 10 ms later on average, and later where processes share a core. And a server in"
    " overload begins up to 50 ms of work before it looks again, two such handlers: one with a core to itself, called"
    " three times as often as it can bear, refused within 7 ms instead of 14 (median) when it looked after each, and"
    " answered 36 calls a second instead of 40",
)
async def overload_cpu(site: Site) -> None:
    cores = min(len(site.members), os.cpu_count() or 1)
    await _overloaded(site, 0.6 * cores / _BUSY, busy=_BUSY)


async def _overloaded(site: Site, knee: float, **sickness: Any) -> None:
    calm = min(site.setup.rate, knee / 2 / len(site.roads))
    for member in site.members:
        member.sicken(**sickness)
    for share in (0.5, 0.75, 1.0):
        await _rate(site, share * knee / len(site.roads))
        await site.steady(_WARM)
        begin = time.monotonic()
        await site.steady(_STEP)
        site.peaks.append((begin, time.monotonic()))
    await _rate(site, calm)
    await site.steady(CALM)
    site.inject()
    await _rate(site, 3 * knee / len(site.roads))
    await site.steady(15.0 if site.short else 60.0)
    await _rate(site, calm)
    site.heal()
    await site.steady(12.0)
    for member in site.members:
        member.sicken()
    await site.steady(CALM)


async def _rate(site: Site, rate: float) -> None:
    for road in site.roads:
        await asyncio.to_thread(site.load.ask, road, f"rate={rate:.3f}")
