"""Faults of what lies around a service: the wall clock, the disk and the server of its database, its certificates, the
control plane's word, the time that callers give.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from itertools import pairwise
from pathlib import Path
from signal import SIGINT, SIGKILL

import grpc

from drills.fault import CLIENTS, Rule, Setup, Site, fault
from drills.of_instances import CALM
from drills.site import TTL
from drills.worlds import python_path
from mesh.registry.record import policy_key
from mesh.settings import TLSFiles
from support.callers import SERVICE
from support.certificates import Authority
from support.echo import EchoRequest, EchoResponse, EchoServiceStub
from support.edge import Process
from support.ports import free_port

# What a call may end with while the database is away, and what it must not tell.
_STORE_AWAY = Rule(
    failed=None,
    recover_healed=2.0,
    codes=("UNAVAILABLE", "RESOURCE_EXHAUSTED", "HTTP 503", "HTTP 429"),
    words=("sqlite", "postgres", "SELECT", "INSERT", "locked", "Traceback", "asyncpg"),
)
_STORE_PASSES = "UNAVAILABLE or RESOURCE_EXHAUSTED, no SQL in the text, recovered ≤ 2 s"


@fault(
    "database-full",
    "database locked, full, or restarted; full",
    _STORE_PASSES,
    rule=_STORE_AWAY,
    setup=Setup(disk=True),
    note="SQLite on a disk of 16 MiB, without room for 5 s",
)
async def database_full(site: Site) -> None:
    assert site.disk is not None
    site.inject()
    await asyncio.to_thread(site.disk.fill)
    await site.steady(5.0)
    await asyncio.to_thread(site.disk.empty)
    site.heal()
    await site.steady(5.0)


@fault(
    "database-restarted",
    "database locked, full, or restarted; restarted",
    _STORE_PASSES,
    rule=_STORE_AWAY,
    setup=Setup(postgres=True),
    note="PostgreSQL for all three, ended in order, away for 3 s",
    known="what pays for repeats at the edge is a worker's own: ten saved at the least, and two a second where that is"
    " more than its share. For 3 s of 40 calls a second, by two workers, that comes to more than a fifth",
)
async def database_restarted(site: Site) -> None:
    assert site.postgres is not None
    site.inject()
    await asyncio.to_thread(site.postgres.stop, SIGINT)
    await site.steady(3.0)
    await asyncio.to_thread(site.postgres.start)
    site.heal()
    await site.steady(5.0)


@fault(
    "clock-moved",
    "clock moved by an hour, both ways",
    "no effect",
    setup=Setup(clock=True),
    note="of every Python process, callers' too: an hour forward, then two back; each for longer than a lease lives."
    " etcd's and Envoy's clocks are left alone",
)
async def clock_moved(site: Site) -> None:
    assert site.clock is not None
    before = await asyncio.to_thread(site.revisions)
    site.inject()
    for seconds in (3600, -3600):
        site.clock.move(seconds)
        await site.steady(4.0 if site.short else 1.2 * TTL)
    new = await site.add_member()
    await site.until(lambda: new.id in site.listed(), 30, "registered")
    await site.measure_lists("an instance started meanwhile is found", site.living, 3.0)
    site.heal()
    site.clock.move(0)
    await site.steady(CALM)
    after = await asyncio.to_thread(site.revisions)
    site.fact("leases that lapsed", sum(after.get(key) != created for key, created in before.items()), 0)


@fault(
    "resource-refused",
    "Envoy NACKs a resource",
    "last good kept, counted, retried on change only",
    note="for 8 s the control plane's cluster waits a negative time for connections; an instance is started meanwhile",
    soak=True,
)
async def resource_refused(site: Site) -> None:
    async def policy(seconds: int) -> None:
        text = f'{{"breaker": {{"openFor": "{seconds}s"}}}}'
        await asyncio.to_thread(site.etcd.ctl, "put", policy_key(site.prefix, SERVICE), text)

    before = await asyncio.to_thread(site.plane_metric, "mesh_xds_nacks_total")
    site.inject()
    site.plane_is_sick.touch()
    await policy(31)
    await site.measure("refusal counted", lambda: site.plane_metric("mesh_xds_nacks_total") > before, 5.0, "edge")
    refused = await asyncio.to_thread(site.plane_metric, "mesh_xds_nacks_total")
    new = await site.add_member()
    await site.until(lambda: new.id in site.listed(), 30, "registered")
    await site.measure("instances come all the same", lambda: site.ready("edge") == site.living(), 3.0, "edge")
    await site.steady(4.0)
    again = await asyncio.to_thread(site.plane_metric, "mesh_xds_nacks_total") - refused
    site.fact("refused again without a change of it", again, 0, "edge")
    site.heal()
    site.plane_is_sick.unlink()
    accepted = await asyncio.to_thread(site.plane_metric, "mesh_xds_pushes_total")
    await policy(32)
    await site.measure("sound one sent", lambda: site.plane_metric("mesh_xds_pushes_total") > accepted, 2.0, "edge")
    await site.steady(CALM)
    nacks = await asyncio.to_thread(site.plane_metric, "mesh_xds_nacks_total")
    site.fact("refusals after the healing", nacks - refused - again, 0, "edge")
    await asyncio.to_thread(site.etcd.ctl, "del", policy_key(site.prefix, SERVICE))


@fault(
    "three-hops",
    "deadline over three hops",
    "shrinks at each hop; no work begun after it passed; database calls bounded",
    roads=CLIENTS,
    note="three servers in a row beside the load, each a process, asked 300 times with 0.3 s, every third time for work"
    " of half a second; then ten times at once to have an instance create a user while another process has SQLite"
    " locked for half a second: those creates have to end with their callers, and none may be done afterwards",
    soak=True,
)
async def three_hops(site: Site) -> None:
    ports = [free_port() for _ in range(3)]
    hops = []
    for number, port in enumerate(ports):
        env = {
            **site.env,
            "MESH_INSTANCE_ID": f"hop-{number}",
            "MESH_LISTEN": f"127.0.0.1:{port}",
            "DRILL_NEXT": f"127.0.0.1:{ports[number + 1]}" if number < 2 else "",
            "DRILL_USERS": site.members[0].address,
            "PYTHONPATH": python_path(),
        }
        hops.append(Process(site.folder, f"hop-{number}", env, "drills.hop"))
    try:
        for hop in hops:
            hop.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            stub = EchoServiceStub(channel)
            await stub.Unary(EchoRequest(text="well"), timeout=20, wait_for_ready=True)
            site.inject()
            grown = late = strange = 0
            for number in range(60 if site.short else 300):
                begin = time.monotonic()
                try:
                    answer = await stub.Unary(EchoRequest(text="x", sleep=0.5 if number % 3 == 2 else 0.0), timeout=0.3)
                    left = [0.3, *map(float, answer.text.split())]
                    grown += any(later >= sooner for sooner, later in pairwise(left))
                except grpc.aio.AioRpcError as e:
                    strange += e.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
                late += time.monotonic() - begin > 0.4
            await _create_over_three_hops(site, stub)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[2]}") as last:
            told = await EchoServiceStub(last).Unary(EchoRequest(text="begun"), timeout=5)
        begun, overdue = map(int, told.text.split())
        site.fact("answers whose time did not shrink at each hop", grown, 0)
        site.fact("calls that ended over 0.1 s after their deadline", late, 0)
        site.fact("ends with another code than DEADLINE_EXCEEDED", strange, 0)
        site.fact("begun after the deadline", begun, 0)
        site.fact("worked on over 0.1 s after the deadline", overdue, 0)
    finally:
        for hop in hops:
            await asyncio.to_thread(hop.end, SIGKILL)
    await site.steady(CALM)


async def _create_over_three_hops(site: Site, stub: EchoServiceStub) -> None:
    """Have the leaf's database locked for longer than callers wait, and note what became of what they had asked for."""
    tag, number = f"hop-{uuid.uuid4().hex[:8]}", 10
    before = site.members[0].counts()
    with sqlite3.connect(site.database, timeout=10, isolation_level=None, check_same_thread=False) as db:
        await asyncio.to_thread(db.execute, "BEGIN IMMEDIATE")
        asked = [stub.Unary(EchoRequest(text=f"{tag}-{n}"), timeout=0.3) for n in range(number)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await site.steady(0.2)
        await asyncio.to_thread(db.execute, "ROLLBACK")
    await site.steady(0.5)
    after = site.members[0].counts()
    site.fact("creates answered by a locked database", sum(isinstance(a, EchoResponse) for a in answers), 0)
    site.fact("creates that did not come to the database", max(0, number - (after["hop"] - before["hop"])), 0)
    site.fact("database calls over 0.1 s past the deadline", after["overdue"] - before["overdue"], 0)
    site.fact("creates done after all", await asyncio.to_thread(site.rows, f"{tag}-%"), 0)


@fault(
    "strange-certificates",
    "certificates rotated, expired, of the wrong identity; strangers",
    "refused with the reason otherwise",
    setup=Setup(tls=True),
    note="who shows an expired certificate, one of another authority, or none, at an instance, the control plane and"
    " the edge; and a client that calls a server of another name",
)
async def strange_certificates(site: Site) -> None:
    assert site.authority is not None
    assert site.tls is not None
    site.inject()
    expired = site.authority.issue("expired", starts=-3.0, ends=-1.0)
    foreign = Authority(site.folder / "strangers").issue("stranger")
    shown = {"expired": expired, "foreign": foreign, "none": None}
    places = {"an instance": site.members[0].address, "the control plane": str(site.control_plane)}
    places |= {"the edge": str(site.envoy.edge)} if "edge" in site.roads else {}
    let_in = sum(
        [await asyncio.to_thread(_is_let_in, site, at, files) for at in places.values() for files in shown.values()]
    )
    site.fact("strangers let in, of nine", let_in, 0)
    known = sum([await asyncio.to_thread(_is_let_in, site, at, site.tls) for at in places.values()])
    site.fact("known ones refused", len(places) - known, 0)
    told = await asyncio.to_thread(_told_of_another_name, site)
    site.fact("refusals of a server of another name that name no reason", float(_REASON not in told.lower()), 0)
    await site.steady(CALM)


# "Hostname Verification Check failed" is what gRPC says to that.
_REASON = "verification"


def _is_let_in(site: Site, address: str, files: TLSFiles | None) -> bool:
    assert site.tls is not None
    assert site.tls.ca is not None
    key, cert = (
        (files.key.read_bytes(), files.cert.read_bytes()) if files and files.key and files.cert else (None, None)
    )
    credentials = grpc.ssl_channel_credentials(site.tls.ca.read_bytes(), key, cert)
    with grpc.secure_channel(address, credentials) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
        except grpc.RpcError as e:
            code: grpc.StatusCode = e.code()  # type: ignore[attr-defined]  # a grpc.Call too
            return code is not grpc.StatusCode.UNAVAILABLE
    return True


def _told_of_another_name(site: Site) -> str:
    """What a client is told that comes to a server whose certificate is for another address."""
    assert site.authority is not None
    assert site.tls is not None
    elsewhere = site.authority.issue("elsewhere", host="127.0.0.9")
    port = free_port()
    env = {
        **site.env,
        "MESH_LISTEN": f"127.0.0.1:{port}",
        "MESH_INSTANCE_ID": "elsewhere",
        "MESH_TLS_CERT": str(elsewhere.cert),
        "MESH_TLS_KEY": str(elsewhere.key),
        "PYTHONPATH": python_path(),
        "DRILL_NEXT": "",
    }
    server = Process(site.folder, "elsewhere", env, "drills.hop")
    server.start()
    try:
        assert site.tls.ca is not None
        assert site.tls.key is not None
        assert site.tls.cert is not None
        files = [Path(part).read_bytes() for part in (site.tls.ca, site.tls.key, site.tls.cert)]
        with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*files)) as channel:
            told, end = "", time.monotonic() + 20
            while _REASON not in told.lower() and time.monotonic() < end:
                try:
                    channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=2)
                    return "it was taken for the right one"
                except grpc.RpcError as e:
                    told = str(e.details())  # type: ignore[attr-defined]  # a grpc.Call too
                time.sleep(0.1)
            return told
    finally:
        server.end(SIGKILL)
