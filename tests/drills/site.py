"""What a drill breaks: etcd, instances, control plane and Envoy, each a process, and callers on three roads, each a
process too. A story (`drills.registry`) gets a running Site; nothing of it is shared with another drill.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import urllib.request
import uuid
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from signal import Signals
from typing import Any, Self, TypeVar

from drills.worlds import Disk, MovedClock, python_path
from mesh.instance import Endpoint
from mesh.registry.record import policy_key, service_prefix
from support.callers import SERVICE
from support.certificates import Authority
from support.edge import Process
from support.entrances import ask
from support.envoy import Envoy
from support.etcd import Etcd, EtcdCluster
from support.load import Load, Report
from support.ports import free_port
from support.postgres import Postgres
from support.proxy import Proxy

ROADS = ("mesh", "blocking", "edge")
CLIENTS = ("mesh", "blocking")
TTL = 10.0
T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What a site is made of. `proxied` puts a proxy before so many instances, the last ones; `etcd_proxied` one before
    etcd.
    """

    instances: int = 3
    etcds: int = 1
    proxied: int = 0
    etcd_proxied: bool = False
    tls: bool = False
    rate: float = 100.0
    env: tuple[tuple[str, str], ...] = ()
    policy: str = ""
    """An operator's override, as it is put into etcd."""
    clock: bool = False
    """Every Python process has a wall clock that can be moved."""
    disk: bool = False
    """The database lies on a small disk of its own."""
    postgres: bool = False
    """The database is PostgreSQL's."""


@dataclass(frozen=True)
class Fact:
    """Something measured by a story: it has to be at most `limit`; None is no demand, it is only told."""

    what: str
    value: float
    limit: float | None
    roads: Sequence[str] = ROADS

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        demand = "no demand" if self.limit is None else f"at most {self.limit:g}"
        return f"{self.what}: {self.value:.3g} ({demand})"


@dataclass(frozen=True)
class Tally:
    """Calls and attempts of a road so far, as process `pid` counts them."""

    calls: float
    attempts: float
    pid: int = 0

    def since(self, before: Tally) -> Tally:
        """Those since an earlier one; another process has begun at nothing."""
        if self.pid != before.pid:
            return self
        return Tally(self.calls - before.calls, self.attempts - before.attempts, self.pid)

    @property
    def amplification(self) -> float:
        """Attempts per call."""
        return self.attempts / max(1.0, self.calls)


class Member:
    """An instance: its process, where it listens, where it is called, and its sickness."""

    def __init__(
        self, folder: Path, number: int, env: Mapping[str, str], setup: Setup, disk: Disk | None = None
    ) -> None:
        self.id = f"users-{number}"
        self.listens = f"127.0.0.1:{free_port()}"
        self.proxy = Proxy(self.listens) if 0 <= setup.instances - number < setup.proxied else None
        self.address = self.proxy.endpoint if self.proxy else self.listens
        self._fault = folder / f"{self.id}.fault"
        own = {
            "MESH_INSTANCE_ID": self.id,
            "MESH_LISTEN": self.listens,
            "MESH_ADVERTISE": self.address,
            "DRILL_FAULT": str(self._fault),
            "PYTHONPATH": python_path(),
        }
        self.process = Process(folder, self.id, {**env, **own}, "drills.instance")
        if disk is not None:
            self.process._command = [*disk.entered, *self.process._command]

    def sicken(self, **sickness: Any) -> None:
        """Make it sick, or healthy again; it knows within some 20 ms."""
        self._fault.write_text(json.dumps(sickness))

    def counts(self) -> dict[str, int]:
        """Calls that came so far, by road, and what else `drills.instance` counts."""
        try:
            found: dict[str, int] = json.loads(Path(f"{self._fault}.counts").read_text())
        except FileNotFoundError:
            return Counter()
        return Counter(found)


class Site:
    """Everything a drill needs, running from `async with` to its end."""

    def __init__(self, folder: Path, setup: Setup, *, roads: Sequence[str] = ROADS, short: bool = False) -> None:
        self.folder, self.setup, self.roads, self.short = folder, setup, roads, short
        self.facts: list[Fact] = []
        self.injected = 0.0
        """When the fault began."""
        self.healed = float("inf")
        """When it was over, if it was."""
        self.peaks: list[tuple[float, float]] = []
        """Stretches of a load that is just borne, where the drill is about more."""
        self.drained: float | None = None
        """Until when calls could begin, where the drill is about those in flight."""
        self.begun: dict[str, Tally] = {}
        """What each road had done when the fault began."""
        self.borne: dict[str, Tally] = {}
        """What each road did while the fault lasted, if its end was noted."""
        self.cluster = EtcdCluster(folder / "etcd") if setup.etcds > 1 else None
        self.etcd = self.cluster.members[0] if self.cluster else Etcd(folder / "etcd")
        self.etcd_proxy = Proxy(self.etcd.endpoint) if setup.etcd_proxied else None
        self.prefix = f"drill-{uuid.uuid4().hex[:8]}"
        self.disk = Disk(folder / "disk") if setup.disk else None
        self.database = (self.disk.folder if self.disk else folder) / "users.db"
        self.postgres = Postgres() if setup.postgres else None
        self.clock = MovedClock(folder) if setup.clock else None
        self.authority = Authority(folder / "authority") if setup.tls else None
        self.tls = self.authority.issue("party") if self.authority else None
        self.env = self._environment()
        self.members = [Member(folder, n, self.env, setup, self.disk) for n in range(1, setup.instances + 1)]
        self.control_plane = Endpoint("127.0.0.1", free_port())
        self.metrics = f"127.0.0.1:{free_port()}"
        self.plane_is_sick = folder / "plane-is-sick"
        plane = self.env | {
            "MESH_METRICS": self.metrics,
            "DRILL_PLANE": str(self.plane_is_sick),
            "PYTHONPATH": python_path(),
        }
        self.plane = Process(
            folder, "control-plane", plane, "drills.plane", "control-plane", "--listen", str(self.control_plane)
        )
        self.envoy = Envoy(folder, self.control_plane, tls=self.tls)
        self.load: Load
        self._stack = AsyncExitStack()

    def _environment(self) -> dict[str, str]:
        endpoints = self.cluster.endpoints if self.cluster else [self.etcd.endpoint]
        env = {
            "MESH_ETCD": self.etcd_proxy.endpoint if self.etcd_proxy else ",".join(endpoints),
            "MESH_PREFIX": self.prefix,
            "MESH_TTL": f"{TTL:g}",
            "USERS_DATABASE": f"sqlite:///{self.database}?synchronous=normal",
        }
        if self.postgres is not None:
            env["USERS_DATABASE"] = self.postgres.url("users")
        if self.tls is not None:
            env |= {f"MESH_TLS_{part.upper()}": str(getattr(self.tls, part)) for part in ("ca", "cert", "key")}
        if self.clock is not None:
            env |= self.clock.environment
        return env | dict(self.setup.env)

    async def __aenter__(self) -> Self:
        async with self._stack:
            if self.disk is not None:
                self._stack.enter_context(self.disk)
            if self.postgres is not None:
                await asyncio.to_thread(self._stack.enter_context, self.postgres)
                await asyncio.to_thread(self.postgres.sql, "CREATE DATABASE users")
            for member in self.cluster.members if self.cluster else [self.etcd]:
                self._stack.callback(member.kill)
                await asyncio.to_thread(member.start, wait=False)
            await asyncio.to_thread(self.etcd.wait_ready)
            if self.setup.policy:
                await asyncio.to_thread(self.etcd.ctl, "put", policy_key(self.prefix, SERVICE), self.setup.policy)
            for proxy in (self.etcd_proxy, *(m.proxy for m in self.members)):
                if proxy is not None:
                    await self._stack.enter_async_context(proxy)
            for process in (*(m.process for m in self.members), self.plane):
                self._stack.callback(process.end, Signals.SIGKILL)
                process.start()
            await self._open_roads()
            self._stack = self._stack.pop_all()
        return self

    async def _open_roads(self) -> None:
        await self.until(lambda: len(self.listed()) == self.setup.instances, 60, "all are registered")
        if "edge" in self.roads:
            self._stack.callback(self.envoy.stop)
            self.envoy.start()
            await asyncio.to_thread(self.envoy.wait_ready, 60)
            await self.until(lambda: self.healthy() == self.setup.instances, 60, "Envoy knows all")
        names = {part: str(getattr(self.tls, part)) for part in ("ca", "cert", "key")} if self.tls else None
        self.load = Load(
            self.folder, self.env, str(self.envoy.edge), names, rate=self.setup.rate, roads=self.roads, deadline=1.0
        )
        await asyncio.to_thread(self.load.__enter__)
        self._stack.callback(self.load._kill)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def finish(self) -> dict[str, Report]:
        """Stop calling and return what became of every call."""
        await asyncio.to_thread(self.load.__exit__, None)
        return self.load.reports

    # -- what stories say

    async def steady(self, seconds: float) -> None:
        """Let the calls go on."""
        await asyncio.sleep(seconds)

    def inject(self) -> None:
        """Note that the fault begins now."""
        self.begun, self.borne = self.tallies(), {}
        self.injected, self.healed = time.monotonic(), float("inf")

    def heal(self) -> None:
        """Note that the fault is over."""
        self.healed = time.monotonic()
        self.borne = {road: tally.since(self.begun[road]) for road, tally in self.tallies().items()}

    def fact(self, what: str, value: float, limit: float | None, *roads: str) -> None:
        """Note what was measured, and what it may be at most, if there is a demand."""
        self.facts.append(Fact(what, value, limit, roads or self.roads))

    async def until(self, condition: Callable[[], object], within: float, what: str) -> float:
        """Wait for a condition and return the seconds it took; fail after so long."""
        begin = time.monotonic()
        while not await asyncio.to_thread(_holds, condition):
            if time.monotonic() - begin > within:
                raise AssertionError(f"not within {within:g} s: {what}")
            await asyncio.sleep(0.01)
        return time.monotonic() - begin

    async def measure(self, what: str, condition: Callable[[], object], limit: float, *roads: str) -> float:
        """Wait for a condition, some seconds beyond its limit, and note how long it took as a fact."""
        begin = time.monotonic()
        try:
            taken = await self.until(condition, limit + 15.0, what)
        except AssertionError:
            taken = time.monotonic() - begin
        self.fact(f"{what}, seconds", taken, limit, *roads)
        return taken

    async def measure_lists(self, what: str, wanted: Callable[[], set[str]], limit: float) -> None:
        """Note for each road how long it takes until it calls just the wanted addresses."""

        async def one(road: str) -> None:
            await self.measure(what, lambda: self.ready(road) == wanted(), limit, road)

        await asyncio.gather(*(one(road) for road in self.roads))

    # -- what is the case

    def listed(self) -> dict[str, str]:
        """Id and address of each instance in etcd, by a linearizable read."""
        told = self._asked_of_etcd()
        return {key.rsplit("/", 1)[1]: json.loads(value)["Addr"] for key, value, _, _ in told if '"Addr":"' in value}

    def revisions(self) -> dict[str, int]:
        """When each key was created, in etcd's count."""
        return {key: created for key, _, created, _ in self._asked_of_etcd()}

    def lease(self, member: Member) -> str:
        """The lease of an instance, as etcdctl writes it."""
        return next(f"{lease:x}" for key, _, _, lease in self._asked_of_etcd() if key.endswith(f"/{member.id}"))

    def key(self, member: str) -> str:
        """The key of an instance."""
        return f"{service_prefix(self.prefix, SERVICE)}{member}"

    def _asked_of_etcd(self) -> list[tuple[str, str, int, int]]:
        """By etcd's gateway: a process of etcdctl for each look would be a load that every figure shows."""
        running = next(m for m in (self.cluster.members if self.cluster else [self.etcd]) if m.running)
        begin = self.key("").encode()
        asked = {"key": b64encode(begin).decode(), "range_end": b64encode(begin[:-1] + b"0").decode()}
        with urllib.request.urlopen(f"http://{running.endpoint}/v3/kv/range", json.dumps(asked).encode(), 5) as answer:
            told = json.load(answer)
        return [
            (
                b64decode(kv["key"]).decode(),
                b64decode(kv["value"]).decode(errors="replace"),
                int(kv["create_revision"]),
                int(kv.get("lease", 0)),
            )
            for kv in told.get("kvs", [])
        ]

    def ready(self, road: str) -> set[str]:
        """The addresses that calls of a road go to."""
        if road in CLIENTS:
            return set(self.load.ask(road, "view")["ready"])
        return {address for address, healthy in self._hosts().items() if healthy}

    def known(self, road: str) -> set[str]:
        """The addresses that a road has been told of, whether calls go there or not."""
        if road in CLIENTS:
            return set(self.load.ask(road)["known"])
        return set(self._hosts())

    def skipped(self, road: str) -> float:
        """How many records a road has passed over; at the edge it is the control plane that reads them."""
        if road in CLIENTS:
            return float(self.load.ask(road)["skipped"])
        return self.plane_metric("mesh_registry_records_skipped_total")

    def compactions(self, road: str) -> float:
        """How many times a road has listed again because history was gone."""
        if road in CLIENTS:
            return float(self.load.ask(road)["compactions"])
        return self.plane_metric("mesh_registry_compactions_total")

    def ejected(self, road: str) -> int:
        """How many instances a road keeps calls from, for what they did."""
        if road in CLIENTS:
            return int(self.load.ask(road, "view")["ejected"])
        return self.envoy.stats(f"cluster.{SERVICE}.outlier_detection.ejections_active").popitem()[1]

    def ejections(self, road: str) -> float:
        """How many times a road has ejected an instance."""
        if road in CLIENTS:
            return float(self.load.ask(road)["ejections"])
        return self.envoy.stats(f"cluster.{SERVICE}.outlier_detection.ejections_enforced_total").popitem()[1]

    def _hosts(self) -> dict[str, bool]:
        told = json.loads(self.envoy.get("/clusters?format=json"))["cluster_statuses"]
        hosts = next((c.get("host_statuses", []) for c in told if c["name"] == SERVICE), [])
        found = {}
        for host in hosts:
            at, health = host["address"]["socket_address"], dict(host["health_status"])
            good = health.pop("eds_health_status", "HEALTHY") == "HEALTHY" and not any(health.values())
            found[f"{at['address']}:{at['port_value']}"] = good
        return found

    def healthy(self) -> int:
        """Instances that Envoy gives calls to."""
        return sum(self._hosts().values())

    def living(self) -> set[str]:
        """The addresses of the instances whose process runs."""
        return {member.address for member in self.members if member.process.running}

    def plane_metric(self, name: str) -> float:
        """A counter of the control plane, over all its labels, or with those in `name`."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def tallies(self) -> dict[str, Tally]:
        """Calls and attempts so far, by road: as each client counts its own, and as Envoy does."""
        found = {}
        for road in self.roads:
            if road in CLIENTS:
                told = self.load.ask(road)
                found[road] = Tally(told["calls"], told["attempts"])
            else:
                stats = self.envoy.stats(f"cluster.{SERVICE}.upstream_rq_(total|retry)$")
                total, again = (stats.get(f"cluster.{SERVICE}.upstream_rq_{name}", 0) for name in ("total", "retry"))
                found[road] = Tally(total - again, total, self.envoy.pid)
        return found

    # -- more hands

    async def add_member(self) -> Member:
        """Start one more instance; nothing is waited for."""
        member = Member(self.folder, len(self.members) + 1, self.env, self.setup, self.disk)
        if member.proxy:
            await self._stack.enter_async_context(member.proxy)
        self.members.append(member)
        self._stack.callback(member.process.end, Signals.SIGKILL)
        member.process.start()
        return member

    def begin_envoy(self, envoy: Envoy) -> None:
        """Start an Envoy in the place of the one before, which goes on until it is stopped."""
        self._stack.callback(envoy.stop)
        envoy.start()
        self.envoy = envoy

    def rows(self, like: str) -> int:
        """How many users have an id like this, asked of the database itself."""
        with sqlite3.connect(self.database) as db:
            found: int = db.execute("SELECT count(*) FROM users WHERE id LIKE ?", (like,)).fetchone()[0]
        return found

    def serves(self) -> bool:
        """Whether the edge answers."""
        return ask(str(self.envoy.edge), "GET", "/v1/users?page_size=1").status == 200


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except (OSError, HTTPException, RuntimeError):  # whom we ask is away: not so, then
        return False


Story = Callable[[Site], Awaitable[None]]
