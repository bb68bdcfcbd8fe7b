"""Faults of etcd, and of what lies in it."""

from __future__ import annotations

import asyncio
import json
from signal import SIGKILL

from drills.fault import Setup, Site, fault
from drills.of_instances import CALM
from drills.site import TTL

THREE = Setup(etcds=3)


async def newcomer_is_seen(site: Site, limit: float) -> None:
    """Note how long from now until every road calls just the instances that live, one of them new to all."""
    await site.measure_lists("list true", site.living, limit)


@fault(
    "etcd-restarted",
    "etcd killed and restarted",
    "0 failed; list true ≤ 3 s after etcd is ready",
    note="an instance more is started while etcd is away, and has to be found",
    soak=True,
)
async def etcd_restarted(site: Site) -> None:
    site.inject()
    site.etcd.kill()
    await site.add_member()
    await site.steady(5.0)
    site.heal()
    await asyncio.to_thread(site.etcd.start)
    await newcomer_is_seen(site, 3.0)
    await site.steady(CALM)


@fault(
    "etcd-away",
    "etcd away for 5 minutes",
    "0 failed; all registered ≤ 5 s after its return, spread by jitter",
    note="thirty times to live, and it returns empty",
    unmeasured="that registrations are spread by jitter: three in a tenth of a second show no spread, and thirty in one"
    " process come when its loop does",
)
async def etcd_away(site: Site) -> None:
    site.inject()
    site.etcd.wipe()
    await site.steady(60.0 if site.short else 300.0)
    site.heal()
    await asyncio.to_thread(site.etcd.start)
    await site.measure("all registered", lambda: set(site.listed().values()) == site.living(), 5.0)
    await site.steady(TTL + 2.0)


@fault(
    "leader-killed",
    "etcd leader killed (three members)",
    "0 failed; list true ≤ 3 s after the election",
    setup=THREE,
    note="an instance more is started at the election; the time it takes to start counts",
)
async def leader_killed(site: Site) -> None:
    assert site.cluster is not None
    leader = await asyncio.to_thread(site.cluster.leader)
    site.inject()
    leader.kill()
    await site.until(site.cluster.leader, 20, "a new leader")
    await site.add_member()
    await newcomer_is_seen(site, 3.0)
    await site.steady(CALM)
    site.heal()
    await asyncio.to_thread(leader.start)
    await site.steady(CALM)


@fault(
    "etcd-hung",
    "etcd hung (STOP)",
    "another member used ≤ 8 s",
    setup=THREE,
    note="the leader hangs for 20 s; used is what an instance started meanwhile was registered and found with",
)
async def etcd_hung(site: Site) -> None:
    assert site.cluster is not None
    leader = await asyncio.to_thread(site.cluster.leader)
    site.inject()
    leader.pause()
    site.cluster.members.remove(leader)  # do not ask it
    try:
        await site.add_member()
        await newcomer_is_seen(site, 8.0)
        await site.steady(2.0 if site.short else 10.0)
    finally:
        leader.resume()
        site.cluster.members.append(leader)
    site.heal()
    await site.steady(CALM)


@fault(
    "compaction",
    "compaction while the watch was cut",
    "list true ≤ 1 s after healing; counted",
    setup=Setup(etcd_proxied=True),
    note="an instance dies while the watch is cut, and its key is deleted before the compaction",
    soak=True,
)
async def compaction(site: Site) -> None:
    assert site.etcd_proxy is not None
    victim = site.members[0]
    before = {road: await asyncio.to_thread(site.compactions, road) for road in site.roads}
    site.inject()
    site.etcd_proxy.refuse = True
    site.etcd_proxy.cut()
    await asyncio.to_thread(victim.process.end, SIGKILL)
    await asyncio.to_thread(site.etcd.ctl, "del", site.key(victim.id))
    await site.steady(1.0)
    told = await asyncio.to_thread(site.etcd.ctl, "put", "noise", "1", "--write-out=json")
    revision = json.loads(told)["header"]["revision"]
    await asyncio.to_thread(site.etcd.ctl, "compact", str(revision))
    site.heal()
    site.etcd_proxy.refuse = False

    async def one(road: str) -> None:
        await site.measure("list true after healing", lambda: site.known(road) == site.living(), 1.0, road)
        await site.measure("compactions counted", lambda: site.compactions(road) > before[road], 1.0, road)

    await asyncio.gather(*(one(road) for road in site.roads))
    victim.process.start()
    await site.measure_lists("back in rotation", lambda: {m.address for m in site.members}, 15.0)
    await site.steady(CALM)


@fault("lease-revoked", "lease revoked by an operator", "back ≤ 1 s + TTL/3", soak=True)
async def lease_revoked(site: Site) -> None:
    victim = site.members[0]
    lease = await asyncio.to_thread(site.lease, victim)
    site.inject()
    await asyncio.to_thread(site.etcd.ctl, "lease", "revoke", lease)
    await site.measure("back in etcd", lambda: victim.id in site.listed(), 1 + TTL / 3)
    await site.steady(CALM)


@fault("key-deleted", "own key deleted", "back ≤ 1 s", soak=True)
async def key_deleted(site: Site) -> None:
    victim = site.members[0]
    site.inject()
    await asyncio.to_thread(site.etcd.ctl, "del", site.key(victim.id))
    await site.measure("back in etcd", lambda: victim.id in site.listed(), 1.0)
    await site.steady(CALM)


@fault(
    "keepalive-broken",
    "keepalive stream broken, 100 times",
    "0 lapses",
    setup=Setup(etcd_proxied=True),
    note="every connection to etcd is reset, 100 times in 30 s",
    soak=True,
)
async def keepalive_broken(site: Site) -> None:
    assert site.etcd_proxy is not None
    before = await asyncio.to_thread(site.revisions)
    site.inject()
    for _ in range(20 if site.short else 100):
        site.etcd_proxy.cut()
        await site.steady(0.3)
    site.heal()
    await site.steady(TTL + 2.0)
    await _same(site, before)


@fault(
    "etcd-slow",
    "etcd slow (2 s per operation)",
    "no lease lost; calls unaffected",
    setup=Setup(etcd_proxied=True),
    note="for 35 s",
    soak=True,
)
async def etcd_slow(site: Site) -> None:
    assert site.etcd_proxy is not None
    before = await asyncio.to_thread(site.revisions)
    site.inject()
    site.etcd_proxy.latency = 1.0
    await site.steady(12.0 if site.short else 35.0)
    site.heal()
    site.etcd_proxy.latency = 0.0
    await site.steady(CALM)
    await _same(site, before)


async def _same(site: Site, before: dict[str, int]) -> None:
    after = await asyncio.to_thread(site.revisions)
    site.fact("leases that lapsed", sum(after.get(key) != created for key, created in before.items()), 0)


# Of another version is what names a state that there is none of yet, or has another form altogether (Kratos's here).
POISON = {
    "bad JSON": "not json",
    "no UTF-8": "\udcff\udcfe",  # the bytes FF FE, as Python hands them to a command
    "a list": '["Op"]',
    "a number for an address": '{"Op":0,"Addr":17,"Metadata":{"id":"x"}}',
    "a list for a zone": '{"Op":0,"Addr":"127.0.0.1:1","Metadata":{"id":"x","zone":["a"]}}',
    "a word for a weight": '{"Op":0,"Addr":"127.0.0.1:1","Metadata":{"id":"x","weight":"heavy"}}',
    "port 99999": '{"Op":0,"Addr":"127.0.0.1:99999","Metadata":{"id":"x"}}',
    "a later version": '{"Op":0,"Addr":"127.0.0.1:1","Metadata":{"id":"x","state":"hibernating"}}',
    "another form": '{"id":"x","name":"users","version":"v2","endpoints":["grpc://127.0.0.1:1"]}',
}


@fault(
    "poisoned-record",
    "poisoned record (bad JSON, wrong types, port 99999, other version)",
    "that one ignored and counted, others unaffected",
    note=f"{len(POISON)} of them, one after the other: {', '.join(POISON)}; an instance started after them has to be"
    " found within 3 s of its registration. What others than us write as `Metadata` is theirs and no poison",
    soak=True,
)
async def poisoned_record(site: Site) -> None:
    site.inject()
    uncounted = dict.fromkeys(site.roads, 0)
    used = dict.fromkeys(site.roads, 0)
    for number, value in enumerate(POISON.values()):
        before = {road: await asyncio.to_thread(site.skipped, road) for road in site.roads}
        await asyncio.to_thread(site.etcd.ctl, "put", site.key(f"poison-{number}"), value)
        for road in site.roads:
            uncounted[road] += not await _is_counted(site, road, before[road])
            used[road] += await asyncio.to_thread(site.known, road) != site.living()
    for road in site.roads:
        site.fact("poisoned records not counted", uncounted[road], 0, road)
        site.fact("poisoned records used", used[road], 0, road)
    new = await site.add_member()
    await site.until(lambda: new.id in site.listed(), 30, "registered")
    await newcomer_is_seen(site, 3.0)
    for number in range(len(POISON)):
        await asyncio.to_thread(site.etcd.ctl, "del", site.key(f"poison-{number}"))
    await site.steady(CALM)


async def _is_counted(site: Site, road: str, before: float) -> bool:
    try:
        await site.until(lambda: site.skipped(road) > before, 1.0, "counted")
    except AssertionError:
        return False
    return True


@fault(
    "prefix-deleted",
    "whole prefix deleted by accident",
    "0 failed while the instances live",
    soak=True,
)
async def prefix_deleted(site: Site) -> None:
    site.inject()
    await asyncio.to_thread(site.etcd.ctl, "del", "--prefix", f"{site.prefix}/")
    await site.measure("all registered again", lambda: set(site.listed().values()) == site.living(), 2.0)
    await site.steady(TTL)
