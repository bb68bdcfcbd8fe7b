"""Faults of the control plane, of Envoy, of the database, of certificates, and of callers."""

from __future__ import annotations

import asyncio
import functools
import random
import shutil
import socket
import sqlite3
import ssl
import time
import uuid
from signal import SIGKILL, SIGTERM

import grpc

import mesh
import mesh.blocking
from drills.fault import Rule, Setup, Site, fault
from drills.invariants import SETTLES
from drills.of_instances import CALM
from mesh.settings import Settings
from support.callers import SERVICE
from support.envoy import Envoy
from users.v1 import users_pb2, users_pb2_grpc

# Requests under way and connections that are open at an edge; the admin page's own have another name.
_IN_USE = "http.edge.downstream_(rq|cx)_active"


@fault(
    "control-plane-killed",
    "control plane killed for minutes",
    "0 failed; on return no needless push, never an empty set before etcd was read",
    note="away for two minutes; on its return the same endpoints are sent once, on purpose: the version that a client"
    " names does not prove that it still has them",
    soak=True,
)
async def control_plane_killed(site: Site) -> None:
    site.inject()
    await asyncio.to_thread(site.plane.end, SIGKILL)
    await site.steady(20.0 if site.short else 120.0)
    site.heal()
    site.plane.start()
    await site.until(lambda: site.plane_metric("mesh_xds_streams") >= 1, 30, "Envoy is back at it")
    await site.steady(CALM)
    every, endpoints = [
        await asyncio.to_thread(site.plane_metric, f"mesh_xds_pushes_total{kind}") for kind in ("", '{type="EDS"}')
    ]
    site.fact("needless pushes (the same endpoints once apart)", every - min(endpoints, 1), 0, "edge")
    site.fact("instances lost at the edge", 3 - await asyncio.to_thread(site.healthy), 0, "edge")


@fault(
    "envoy-restarted",
    "Envoy restarted",
    "calls in flight finish where the client drains",
    note="another Envoy is started on the same port, then the old one is told to drain (docs/production.md), and ended"
    " when nobody uses it any more, or after 10 s",
    soak=True,
)
async def envoy_restarted(site: Site) -> None:
    old = site.envoy
    new = Envoy(site.folder, site.control_plane, name=f"{old.name}-next", edge=old.edge)
    site.inject()
    site.begin_envoy(new)
    await asyncio.to_thread(new.wait_ready, 30)
    await asyncio.to_thread(old.get, "/drain_listeners?graceful&skip_exit", "POST")
    await site.until(lambda: not any(old.stats(_IN_USE).values()), 10, "the old one is left")
    await asyncio.to_thread(old.stop)
    await site.steady(CALM)


@fault(
    "envoy-killed",
    "Envoy restarted; without another in its place",
    "calls in flight finish where the client drains",
    rule=Rule(failed=None),
    note="told to drain, given two seconds, ended and started again on its port. Judged are the calls begun while it"
    " drained and those begun 3 s and more after it serves again, a plain channel's longest pause before it connects",
    unmeasured="the calls that came while nobody listened: they failed, stand in the row, and are not judged. Whoever"
    " minds starts the other one first, as in the row before",
)
async def envoy_killed(site: Site) -> None:
    site.inject()
    await asyncio.to_thread(site.envoy.get, "/drain_listeners?graceful&skip_exit", "POST")
    await site.steady(0.8)
    site.drained = time.monotonic()
    await site.steady(1.2)
    await asyncio.to_thread(site.envoy.stop)
    site.envoy.start()
    await asyncio.to_thread(site.envoy.wait_ready, 30)
    await site.until(lambda: site.healthy() == 3, 30, "Envoy knows all")
    await site.until(site.serves, 30, "Envoy serves")
    site.heal()
    await site.steady(CALM)


@fault(
    "reply-lost",
    "reply lost after a create, 1,000 times",
    "one row each, the same reply; the same id with another body refused; survives restarts",
    note="one instance does each write and loses its first answer, to the load on every road as well; repeats go to any"
    " instance",
    soak=True,
)
async def reply_lost(site: Site) -> None:
    number = 100 if site.short else 1000
    settings = Settings.from_env(site.env)
    tag = f"lost-{uuid.uuid4().hex[:8]}"
    site.inject()
    async with (
        mesh.connect(SERVICE, settings=settings) as channel,
        grpc.aio.insecure_channel(site.members[0].address) as direct,
    ):
        stub, lossy = users_pb2_grpc.UserServiceStub(channel), users_pb2_grpc.UserServiceStub(direct)

        def request(n: int, name: str = "Ada") -> users_pb2.CreateUserRequest:
            user = users_pb2.User(id=f"{tag}-{n}", name=name, email=f"{tag}-{n}@lost.example")
            return users_pb2.CreateUserRequest(user=user, request_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{tag}{n}")))

        site.members[0].sicken(lose=True)
        await site.steady(0.2)
        lost = 0
        first = []
        for n in range(number):
            try:
                await lossy.CreateUser(request(n), timeout=5)
            except grpc.aio.AioRpcError:
                lost += 1
            first.append(await stub.CreateUser(request(n), timeout=5))
        again = [await stub.CreateUser(request(n), timeout=5) for n in range(0, number, 10)]
        refused = 0
        for n in range(0, number, 10):
            try:
                await stub.CreateUser(request(n, name="Eve"), timeout=5)
            except grpc.aio.AioRpcError as e:
                refused += e.code() is grpc.StatusCode.INVALID_ARGUMENT
        site.members[0].sicken()
        site.heal()
        for member in site.members:
            await asyncio.to_thread(member.process.end, SIGTERM)
            member.process.start()
            await site.until(lambda: len(site.listed()) == 3, 30, "registered again")
            if "edge" in site.roads:
                await site.until(lambda: site.healthy() == 3, 30, "known again")
        after = [await stub.CreateUser(request(n), timeout=5) for n in range(0, number, 10)]
    site.fact("replies that were not lost", number - lost, 0)
    site.fact("rows too many or too few", abs(await asyncio.to_thread(site.rows, f"{tag}-%") - number), 0)
    site.fact("repeats answered otherwise", sum(a != b for a, b in zip(first[::10], again, strict=True)), 0)
    site.fact("the same after restarts, not so", sum(a != b for a, b in zip(first[::10], after, strict=True)), 0)
    site.fact("other bodies not refused", len(again) - refused, 0)


@fault(
    "certificates-rotated",
    "certificates rotated",
    "0 failed on rotation",
    setup=Setup(tls=True),
    note="twice, on every hop at once",
)
async def certificates_rotated(site: Site) -> None:
    assert site.authority is not None
    assert site.tls is not None
    site.inject()
    for turn in range(2):
        fresh = site.authority.issue(f"fresh-{turn}")
        for new, old in ((fresh.cert, site.tls.cert), (fresh.key, site.tls.key)):
            assert new is not None
            assert old is not None
            shutil.copy(new, f"{old}.new")
            shutil.move(f"{old}.new", old)
        assert fresh.cert is not None
        wanted = ssl.PEM_cert_to_DER_cert(fresh.cert.read_text())
        for member in site.members:
            shown = functools.partial(_shown, site, member.address, wanted)
            await site.measure(f"renewed certificate shown by {member.id}", shown, 10.0)
        await site.steady(8.0)


def _shown(site: Site, address: str, wanted: bytes) -> bool:
    assert site.tls is not None
    assert site.tls.cert is not None
    context = ssl.create_default_context(cafile=str(site.tls.ca))
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    try:
        context.load_cert_chain(site.tls.cert, site.tls.key)
        with (
            socket.create_connection((host, int(port)), 5) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            return connection.getpeercert(binary_form=True) == wanted
    except ssl.SSLError:  # its files are being changed
        return False


@fault(
    "calls-cancelled",
    "10,000 calls cancelled",
    "tasks, permits, descriptors at baseline",
    note="half of them asyncio, half blocking, each cancelled up to 5 ms after its begin, beside the load; permits at"
    " servers and of every kind of call are counted by a test (tests/client/test_leaks.py)",
)
async def calls_cancelled(site: Site) -> None:
    number = 200 if site.short else 5000
    dice = random.Random(1)
    settings = Settings.from_env(site.env)
    request = users_pb2.GetUserRequest(id="nobody")
    site.inject()
    async with mesh.connect(SERVICE, settings=settings) as channel:
        await channel.channel_ready()
        stub = users_pb2_grpc.UserServiceStub(channel)
        loop = asyncio.get_running_loop()
        before = await asyncio.to_thread(_settled, loop)
        for _ in range(number):
            call = stub.GetUser(request, timeout=5)
            await asyncio.sleep(dice.uniform(0.0, 0.005))
            call.cancel()
        site.fact("tasks left", await asyncio.to_thread(_settled, loop, before) - before, 0, "mesh")
        roster = channel._pool.roster
        site.fact("calls in flight left", sum(slot.connection.in_flight for slot in roster.slots), 0, "mesh")
        site.fact("breakers that took it amiss", sum(not s.breaker.is_closed for s in roster.slots), 0, "mesh")
    await asyncio.to_thread(_cancel_blocking, site, settings, number, dice)
    await site.steady(CALM)


def _cancel_blocking(site: Site, settings: Settings, number: int, dice: random.Random) -> None:
    request = users_pb2.GetUserRequest(id="nobody")
    with mesh.blocking.connect(SERVICE, settings=settings) as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        loop = channel.thread().loop
        with_error = stub.GetUser.future(request, timeout=5)
        with_error.exception()
        before = _settled(loop)
        for _ in range(number):
            call = stub.GetUser.future(request, timeout=5)
            time.sleep(dice.uniform(0.0, 0.005))
            call.cancel()
        site.fact("tasks left", _settled(loop, before) - before, 0, "blocking")


def _settled(loop: asyncio.AbstractEventLoop, enough: int = 0) -> int:
    """Return the tasks of a loop, once they are no more than enough or have been as many for a while."""
    end = time.monotonic() + 10.0
    had, since = -1, 0.0
    while time.monotonic() < end:
        now = len(asyncio.all_tasks(loop))
        if now != had:
            had, since = now, time.monotonic()
        if now <= enough or time.monotonic() - since > SETTLES:
            break
        time.sleep(0.01)
    return had


@fault(
    "database-locked",
    "database locked, full, or restarted",
    "UNAVAILABLE or RESOURCE_EXHAUSTED, no SQL in the text, recovered ≤ 2 s",
    rule=Rule(
        failed=None,
        recover_healed=2.0,
        codes=("UNAVAILABLE", "RESOURCE_EXHAUSTED", "HTTP 503", "HTTP 429"),
        words=("sqlite", "SELECT", "INSERT", "locked", "Traceback"),
    ),
    note="locked for 3 s by another process. A write waits for the lock as long as its caller does, so that a short one"
    " costs nobody an error",
    known="at the edge a write that waits is tried elsewhere after a quarter of a second, which helps nobody here. What"
    " pays for that is a worker's own: ten repeats saved at the least, and two a second where that is more than its"
    " share. For 3 s of 40 calls a second, by two workers, that comes to more than a fifth",
)
async def database_locked(site: Site) -> None:
    with sqlite3.connect(site.database, timeout=10, isolation_level=None, check_same_thread=False) as db:
        site.inject()
        await asyncio.to_thread(db.execute, "BEGIN IMMEDIATE")
        await site.steady(3.0)
        await asyncio.to_thread(db.execute, "ROLLBACK")
        site.heal()
    await site.steady(5.0)
