"""Picks among few endpoints and among many, and what a resolver pays for a change among ten thousand instances."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

import mesh
from bench import openloop
from bench.arms.client import Arms
from bench.measure import Arm
from mesh.balancing.making import picker_for
from mesh.balancing.picker import Candidate
from mesh.client.roster import Roster
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, Instance, View
from mesh.policy import Balancer, BalancerPolicy, BreakerPolicy
from mesh.registry import record
from mesh.registry.resolver import Resolver
from mesh.resilience.outcome import Outcome
from mesh.settings import Settings

FEW, MANY = 3, 1000
SERVICE = "bench.v1.Fleet"
_PREFIX = "bench"
_SLOW = 0.5
_METHOD = f"/{SERVICE}/Call"


def fleet(size: int) -> list[Instance]:
    """Return so many instances."""
    return [
        Instance(
            SERVICE,
            f"i{n:05}",
            Endpoint(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 50051),
            zone=f"zone-{n % 3}",
            version="1.0.0",
            started=1.7e9 + n,
            contract="0" * 64,
        )
        for n in range(size)
    ]


def _turns(size: int, *, record: bool) -> Callable[[int], None]:
    """A roster's pick, as each attempt makes it: the turn and the breaker's permit; and the outcome told to it."""
    roster = Roster(SERVICE, BreakerPolicy())
    roster.update(View.of(SERVICE, fleet(size)))
    for slot in roster.slots:
        roster.connection_changed(slot, 0.0, connected=True)
    made = 0

    def pick_only(picks: int) -> None:
        pick = roster.pick
        for _ in range(picks):
            pick(1.0)

    def run(picks: int) -> None:
        nonlocal made
        pick, ok = roster.pick, Outcome.SUCCESS
        for number in range(made, made + picks):
            now = number / 5000
            picked = pick(now)
            assert picked is not None
            picked[1].record(ok, now, 0.5, 0.001, _METHOD)
        made += picks

    return run if record else pick_only


def _balanced(kind: Balancer, size: int) -> Callable[[int], None]:
    """A balancer's pick."""
    picker = picker_for(BalancerPolicy(kind))
    assert picker is not None
    picker.replace([Candidate(i, str(i.endpoint)) for i in fleet(size)], 0.0)
    draw = random.Random(1).random
    keys = [b"user-%d" % number for number in range(256)]

    def run(picks: int) -> None:
        for number in range(picks):
            picker.pick(1.0, draw(), (), keys[number & 255])

    return run


@asynccontextmanager
async def picks(job: Mapping[str, Any]) -> AsyncIterator[Arms]:
    """Picks over a few endpoints, and over many."""
    kind = Balancer(job["balancer"])
    few, many = (
        _turns(size, record=job["record"]) if kind is Balancer.ROUND_ROBIN else _balanced(kind, size)
        for size in (FEW, MANY)
    )
    yield Arm(few), {"many": Arm(many)}


class _Host:
    """A server's mood, and its calls."""

    def __init__(self) -> None:
        self.slow, self.calls = False, 0

    async def start(self) -> tuple[grpc.aio.Server, str]:
        """Serve."""

        async def answer(request: bytes, context: Any) -> bytes:
            self.calls += 1
            await asyncio.sleep(_SLOW if self.slow else 0)
            return request

        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        method: dict[str, Any] = {"Call": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, method),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"


async def slow_host(job: Mapping[str, Any]) -> dict[str, float]:
    """Call three hosts, one of which begins to be slow, at a steady rate; tell how many calls met it."""
    hosts = [_Host() for _ in range(3)]
    servers = [await host.start() for host in hosts]
    addresses, kind = [address for _, address in servers], Balancer(job["balancer"])
    async with mesh.connect(SERVICE, endpoints=addresses, balancer=kind) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Call")
        for _ in range(300):
            await call(b"x", timeout=5)
        hosts[1].slow, hosts[1].calls = True, 0
        arms = {"mesh": lambda: call(b"x", timeout=5)}
        found = await openloop.drive(arms, rate=job["rate"], seconds=job["seconds"], warm=0)
    for server, _ in servers:
        await server.stop(0)
    facts = found["mesh"].facts()
    return {"met_percent": 100 * hosts[1].calls / facts["calls"], "p99_ms": facts["p99_ms"]}


async def follow(etcd: str, size: int) -> None:
    """Follow ten thousand instances in etcd. Prints "ready", then reads versions and answers once each is seen."""
    store = EtcdStore.from_settings(Settings(etcd=(Endpoint.parse(etcd),)))
    resolver, news = Resolver(store, _PREFIX), asyncio.Event()
    seen = View(SERVICE)

    def listen(view: View) -> None:
        nonlocal seen
        seen = view
        news.set()

    async def until(true: Callable[[], bool]) -> None:
        while not true():
            news.clear()
            await news.wait()

    subscription = resolver.subscribe(SERVICE, listen)
    await until(lambda: len(seen.instances) == size)
    print("ready", flush=True)
    while version := (await asyncio.to_thread(sys.stdin.readline)).strip():
        await until(lambda: seen.instances[0].version == version)
        print(version, flush=True)
    subscription.close()
    await resolver.aclose()
    await store.close()


async def write(etcd: str, size: int) -> None:
    """Put the instances into etcd, without leases. Then read numbers, and make so many changes, one at a time."""
    store, instances = EtcdStore.from_settings(Settings(etcd=(Endpoint.parse(etcd),))), fleet(size)
    left = iter(instances)

    async def some() -> None:
        for instance in left:
            await store.put(record.instance_key(_PREFIX, instance), record.encode(instance))

    await asyncio.gather(*(some() for _ in range(32)))
    print("ready", flush=True)
    made, draw = 0, random.Random(1)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        for number in range(int(line)):
            made += 1
            # The last of a batch is of the instance that is looked at.
            instance = instances[0 if number == int(line) - 1 else draw.randrange(1, size)]
            changed = instance._replace(version=f"{made}")
            await store.put(record.instance_key(_PREFIX, changed), record.encode(changed))
            await asyncio.sleep(0.002)  # so that each change is seen alone
        print(made, flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run({"follow": follow, "write": write}[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
