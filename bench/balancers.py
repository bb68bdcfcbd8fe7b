"""What a balancer costs per pick, and what one buys: three servers, one of which begins to take half a second.

    python bench/balancers.py [--seconds 10] [--rate 200]

Picks are timed by the CPU they take, the best of seven. Calls are made at a steady rate that waits for no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import grpc

import mesh
from mesh.balancing.load import Ending
from mesh.balancing.making import picker_for
from mesh.balancing.picker import Candidate
from mesh.balancing.round_robin import RoundRobin
from mesh.policy import Balancer, BalancerPolicy

SLOW = 0.5


def cost_ns(work: Callable[[], object], times: int = 20_000) -> float:
    """Return the CPU that one call of `work` takes, in nanoseconds."""
    best = float("inf")
    for _ in range(7):
        began = time.process_time_ns()
        for _ in range(times):
            work()
        best = min(best, (time.process_time_ns() - began) / times)
    return best


def picks(size: int) -> None:
    known = [Candidate(n, f"10.0.0.{n}:50051") for n in range(size)]
    load, draw = known[0].load, random.Random(1).random

    def call() -> None:
        load.began(1.0)
        load.ended(1.01, 0.01, Ending.ANSWERED)

    print(f"{size} instances: round robin {cost_ns(RoundRobin(known).pick):.0f} ns", end="")
    for kind in (Balancer.LEAST_LOADED, Balancer.WEIGHTED, Balancer.CONSISTENT_HASH):
        picker = picker_for(BalancerPolicy(kind))
        assert picker is not None
        picker.replace(known, 0.0)
        spent = cost_ns(lambda picker=picker: picker.pick(1.0, draw(), (), b"user-12345"))  # type: ignore[misc]  # bound now
        print(f", {kind.value.lower()} {spent:.0f} ns", end="")
    print(f"; keeping count of a load {cost_ns(call):.0f} ns")


class Host:
    """A server's mood, and its calls."""

    slow = False
    calls = 0


async def serve(host: Host) -> tuple[grpc.aio.Server, str]:
    async def answer(request: bytes, context: Any) -> bytes:
        host.calls += 1
        await asyncio.sleep(SLOW if host.slow else 0)
        return request

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("b.Bench", {"Call": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def one_slow_host(kind: Balancer, seconds: float, rate: float) -> None:
    hosts = [Host() for _ in range(3)]
    servers = [await serve(host) for host in hosts]
    took: list[float] = []
    async with mesh.connect("b.Bench", endpoints=[address for _, address in servers], balancer=kind) as channel:
        stub = channel.unary_unary("/b.Bench/Call")

        async def call() -> None:
            began = time.perf_counter()
            await stub(b"x", timeout=5)
            took.append(time.perf_counter() - began)

        for _ in range(300):
            await call()
        took.clear()
        hosts[1].slow, hosts[1].calls = True, 0
        start, tasks = time.perf_counter(), []
        for number in range(int(seconds * rate)):
            await asyncio.sleep(start + number / rate - time.perf_counter())
            tasks.append(asyncio.create_task(call()))
        await asyncio.gather(*tasks)
    for server, _ in servers:
        await server.stop(0)
    took.sort()
    p50, p99 = (took[int(len(took) * share)] * 1000 for share in (0.5, 0.99))
    met = f"{hosts[1].calls} of {len(took)} calls met the slow one"
    print(f"{kind.value.lower():12} p50 {p50:.1f} ms, p99 {p99:.1f} ms, {met}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=200)
    given = parser.parse_args()
    for instances in (3, 200):
        picks(instances)
    for balancer in (Balancer.ROUND_ROBIN, Balancer.LEAST_LOADED):
        asyncio.run(one_slow_host(balancer, given.seconds, given.rate))
