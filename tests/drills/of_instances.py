"""Faults of one instance, or of the path to it."""

from __future__ import annotations

import asyncio
import random
import time
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

import grpc

from drills.fault import Rule, Setup, Site, fault
from drills.site import TTL
from mesh.settings import Settings
from users.v1 import users_pb2, users_pb2_grpc

CALM = 3.0
"""Seconds of load before a fault, and after it."""


@fault(
    "killed",
    "instance killed (-9)",
    "0 failed; out of rotation ≤ 100 ms; key gone ≤ TTL + 1 s",
    soak=True,
)
async def killed(site: Site) -> None:
    victim = site.members[0]
    before = site.listed()
    site.inject()
    victim.process.end(SIGKILL)
    await asyncio.gather(
        *(
            site.measure("out of rotation", lambda r=road: victim.address not in site.ready(r), 0.1, road)  # type: ignore[misc]  # mypy cannot tell a lambda with a default
            for road in site.roads
        )
    )
    await site.measure("key gone", lambda: victim.id not in site.listed(), TTL + 1)
    site.heal()
    victim.process.start()
    await site.measure_lists("back in rotation", lambda: set(before.values()), 10.0)
    await site.steady(CALM)


@fault(
    "hung",
    "instance hung (STOP 60 s, then CONT)",
    "slow calls only in the first 2.5 s and ≤ 5 failed; back ≤ 2 s after CONT",
    rule=Rule(failed=5, recover=2.5),
    known="calls that wait there when it hangs wait for their deadline of 1 s, unless they are hedged: reads are, by"
    " their contract, writes are not, for one that waits for a lock waits elsewhere as well",
    soak=True,
)
async def hung(site: Site) -> None:
    victim = site.members[0]
    everyone = set(site.listed().values())
    site.inject()
    victim.process.send(SIGSTOP)
    await site.steady(10.0 if site.short else 20.0 if site.setup.policy else 60.0)
    site.heal()
    victim.process.send(SIGCONT)
    await site.measure_lists("back after CONT", lambda: everyone, 2.0)
    await site.steady(CALM)


@fault(
    "grey",
    "grey: one instance takes 500 ms",
    "ejected ≤ 5 s; afterwards p99 ≤ 2 × healthy; never more than half ejected",
    rule=Rule(p99_factor=2.0),
    note="p99 from 5 s on is held against that of the 20 s before, as many calls",
    known="Envoy has no rule for slow instances, and its balancer by response times (peak_ewma) is in its contrib"
    " builds alone ([envoy#44686](https://github.com/envoyproxy/envoy/issues/44686)). It hedges reads after 0.2 s and"
    " leaves alone who is late twice in a row; but every call that begins there begins that count anew, and after 10"
    " to 12 s the instance is back with its whole share, which comes to more than one slow call in a hundred."
    " [edge.md](edge.md#slow-instances) tells what else was weighed",
    soak=True,
)
async def grey(site: Site) -> None:
    victim = site.members[0]
    # What p99 is held against: of as many calls as that, and as closely watched. Of 160 it would be the second worst.
    await _watched(site, 4.0 if site.short else 16.0)
    site.inject()
    victim.sicken(delay=0.5)
    await starved(site, 10.0 if site.short else 25.0)
    site.heal()
    victim.sicken()
    await site.steady(CALM)


@fault(
    "failing",
    "instance fails 30 % of calls",
    "≥ 99.9 % success; ejected or starved ≤ 5 s",
    rule=Rule(failed=None, success=0.999),
    known="at the edge each instance is judged by itself, by the last 2 s, which are few calls at this rate",
    soak=True,
)
async def failing(site: Site) -> None:
    victim = site.members[0]
    site.inject()
    victim.sicken(fail=0.3)
    await starved(site, 10.0 if site.short else 25.0)
    site.heal()
    victim.sicken()
    await site.steady(CALM)


async def starved(site: Site, seconds: float) -> None:
    """Wait so long and note the share of calls that the first instance still gets after the first five."""
    await site.steady(5.0)
    before = [member.counts() for member in site.members]
    for road, most in (await _watched(site, seconds - 5.0)).items():
        site.fact("instances ejected at most, of three", most, 1, road)
    after = [member.counts() for member in site.members]
    for road in site.roads:
        got = [b[road] - a[road] for a, b in zip(before, after, strict=True)]
        site.fact("share of the sick instance after 5 s", got[0] / max(1, sum(got)), 0.1, road)


async def _watched(site: Site, seconds: float) -> dict[str, int]:
    """Wait so long and return how many instances each road has ejected at most."""
    most = dict.fromkeys(site.roads, 0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for road in site.roads:
            most[road] = max(most[road], await asyncio.to_thread(site.ejected, road))
        await site.steady(0.5)
    return most


@fault(
    "flapping",
    "flapping at 1 Hz for a minute",
    "0 failed; ejection grows; no leak",
    setup=Setup(proxied=3),
    note="the path to the instance flaps: reset and refused for half a second, then open for half a second",
    unmeasured="that ejection grows, as nothing is ejected: a broken connection takes itself out; see the next row",
    known="Envoy may eject what it cannot connect to: that ends 10 to 12 s later, and its list is judged after 11 s",
    soak=True,
)
async def flapping(site: Site) -> None:
    proxy = site.members[-1].proxy
    assert proxy is not None
    site.inject()
    for _ in range(10 if site.short else 60):
        proxy.refuse = True
        proxy.cut()
        await site.steady(0.5)
        proxy.refuse = False
        await site.steady(0.5)
    site.heal()
    await site.measure_lists("back in rotation", lambda: set(site.listed().values()), 15.0)
    await site.steady(CALM)


_EJECTED_FOR = 2


@fault(
    "flapping-failing",
    "flapping at 1 Hz for a minute; its answers",
    "0 failed; ejection grows; no leak",
    setup=Setup(policy=f'{{"breaker": {{"openFor": "{_EJECTED_FOR}s"}}}}'),
    note="the instance fails every call for half a second, then none for half a second; breakers open for"
    f" {_EJECTED_FOR} s at first, so that in a minute some twenty ejections would be"
    " seen if they did not grow. Envoy's grow by 5 s each",
    soak=True,
)
async def flapping_failing(site: Site) -> None:
    victim = site.members[0]
    before = {road: await asyncio.to_thread(site.ejections, road) for road in site.roads}
    site.inject()
    for _ in range(10 if site.short else 60):
        victim.sicken(fail=1.0)
        await site.steady(0.5)
        victim.sicken()
        await site.steady(0.5)
    site.heal()
    for road in site.roads:
        times = await asyncio.to_thread(site.ejections, road) - before[road]
        site.fact("never ejected", float(times == 0), 0, road)
        site.fact("ejections in a minute", times, 10, road)
    await site.steady(CALM)


@fault(
    "black-hole",
    "path black-holed",
    "≤ ping time + ping timeout + 0.5 s",
    rule=Rule(failed=None, recover=2.5),
    setup=Setup(proxied=3),
    note="calls that wait in the hole meet their deadline of 1 s until then",
    soak=True,
)
async def black_hole(site: Site) -> None:
    proxy = site.members[-1].proxy
    assert proxy is not None
    everyone = set(site.listed().values())
    site.inject()
    proxy.swallow = True
    await site.steady(10.0 if site.short else 20.0)
    site.heal()
    proxy.swallow = False
    await site.measure_lists("back after healing", lambda: everyone, 10.0)
    await site.steady(CALM)


@fault(
    "reset",
    "GOAWAY in mid call, reset in mid response",
    "0 failed of 10,000 idempotent calls",
    rule=Rule(calls=10_000),
    setup=Setup(proxied=3, rate=150.0, env=(("DRILL_CONNECTION_AGE_MS", "1000"),)),
    note="three times a second every connection to some instance is reset; servers send GOAWAY to each connection of a"
    " second",
    soak=True,
)
async def reset(site: Site) -> None:
    dice = random.Random(1)
    proxies = [member.proxy for member in site.members if member.proxy is not None]
    site.inject()
    end = time.monotonic() + (5.0 if site.short else 70.0)
    while time.monotonic() < end:
        dice.choice(proxies).cut()
        await site.steady(0.33)
    site.heal()
    await site.steady(CALM)


@fault(
    "rolling-restart",
    "rolling restart, all instances, six times",
    "0 failed of ≥ 8,000, writes included; each exit ≤ grace",
    rule=Rule(calls=8_000),
    setup=Setup(rate=150.0),
    soak=True,
)
async def rolling_restart(site: Site) -> None:
    site.inject()
    worst = 0.0
    for _ in range(1 if site.short else 6):
        for member in site.members:
            begin = time.monotonic()
            await asyncio.to_thread(member.process.end, SIGTERM)
            worst = max(worst, time.monotonic() - begin)
            member.process.start()
            await site.until(lambda: len(site.listed()) == 3, 30, "registered again")
            if "edge" in site.roads:
                await site.until(lambda: site.healthy() == 3, 30, "known again")
    site.heal()
    while time.monotonic() - site.injected < (0.0 if site.short else 56.0):  # as many calls as the matrix asks for
        await site.steady(1.0)
    await site.steady(CALM)
    site.fact("longest exit, seconds", worst, 10.0)


@fault(
    "stuck-handler",
    "SIGTERM with a stuck handler",
    "exits ≤ grace + 1 s, key gone first",
    setup=Setup(env=(("MESH_DRAIN", "3"),)),
    note="grace is 3 s here",
    soak=True,
)
async def stuck_handler(site: Site) -> None:
    victim = site.members[0]
    async with grpc.aio.insecure_channel(victim.address) as channel:
        call = users_pb2_grpc.UserServiceStub(channel).GetUser(users_pb2.GetUserRequest(id="stuck-1"), timeout=60)
        await site.steady(CALM)
        site.inject()
        victim.process.send(SIGTERM)
        gone = asyncio.create_task(site.until(lambda: victim.id not in site.listed(), 20, "key gone"))
        left = await site.until(lambda: not victim.process.running, 20, "exit")
        grace = Settings.from_env(site.env).drain
        site.fact("exit, seconds", left, grace + 1.0)
        site.fact("key gone, seconds", await gone, left)
        call.cancel()
    site.heal()
    victim.process.start()
    await site.measure_lists("back in rotation", lambda: set(site.listed().values()) | {victim.address}, 10.0)
    await site.steady(CALM)


@fault(
    "two-on-one-port",
    "two servers on one port",
    "the second refuses to start",
    soak=True,
)
async def two_on_one_port(site: Site) -> None:
    site.inject()
    second = await site.add_member()
    await asyncio.to_thread(second.process.end, SIGKILL)
    second.process._env |= {"MESH_LISTEN": site.members[0].listens, "MESH_ADVERTISE": site.members[0].listens}  # type: ignore[operator]  # a dict, always
    second.process.start()
    await site.measure("the second has ended", lambda: not second.process.running, 10.0)
    site.fact("instances in etcd", len(set(site.listed().values())), 3)
    site.members.remove(second)


@fault(
    "all-unavailable",
    "every instance UNAVAILABLE",
    "offered load ≤ 1.2 ×; healthy ≤ 5 s after healing",
    rule=Rule(failed=None, recover_healed=5.0),
    soak=True,
    known="what was saved in the calm before is spent in the first seconds, and a client of few calls has two retries a"
    " second at any rate: at 40 calls a second both are a larger share than at thousands",
)
async def all_unavailable(site: Site) -> None:
    before = [member.counts() for member in site.members]
    known = {road: sum(b[road] for b in before) for road in site.roads}
    site.inject()
    for member in site.members:
        member.sicken(fail=1.0)
    marks = await _offered(site)
    await site.steady(10.0)
    later = await _offered(site)
    site.heal()
    for member in site.members:
        member.sicken()
    for road in site.roads:
        calls = site.setup.rate * (later[road][1] - marks[road][1]) * 0.8  # lists name no road, and are a fifth
        site.fact("offered load in the outage, × calls", (later[road][0] - marks[road][0]) / calls, 1.2, road)
    assert all(known[road] <= later[road][0] for road in site.roads)
    await site.steady(8.0)


async def _offered(site: Site) -> dict[str, tuple[int, float]]:
    """Calls that came so far over all instances, and when that was, by road."""
    counts = [member.counts() for member in site.members]
    return {road: (sum(c[road] for c in counts), time.monotonic()) for road in site.roads}


LEAST_LOADED = '{"balancer": {"kind": "KIND_LEAST_LOADED"}}'
_AS_BEFORE = "as before, with the balancer that an operator chooses where instances stall"

fault(
    "hung-least-loaded",
    "instance hung (STOP 60 s, then CONT); least loaded",
    "slow calls only in the first 2.5 s and ≤ 5 failed; back ≤ 2 s after CONT",
    rule=Rule(failed=5, recover=2.5),
    setup=Setup(policy=LEAST_LOADED),
    note=f"{_AS_BEFORE}; for 20 s",
    known="Envoy finds a hung instance by two calls in a row that are not answered for a tenth of their time, or by a"
    " health check a second that may take a second; until then calls go there",
)(hung)
fault(
    "grey-least-loaded",
    "grey: one instance takes 500 ms; least loaded",
    "ejected ≤ 5 s; afterwards p99 ≤ 2 × healthy; never more than half ejected",
    rule=Rule(p99_factor=2.0),
    setup=Setup(policy=LEAST_LOADED),
    note=_AS_BEFORE,
    known="Envoy weighs calls under way, not their time; at few calls a second one in thirty still goes there, and one"
    " at a time is never two in a row",
)(grey)
fault(
    "failing-least-loaded",
    "instance fails 30 % of calls; least loaded",
    "≥ 99.9 % success; ejected or starved ≤ 5 s",
    rule=Rule(failed=None, success=0.999),
    setup=Setup(policy=LEAST_LOADED),
    note=_AS_BEFORE,
)(failing)
