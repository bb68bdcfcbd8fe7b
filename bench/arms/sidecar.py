"""Three roads to the same three instances: our channel, gRPC's own xDS client fed by our control plane, and a raw stub
that calls an Envoy beside it. Who calls, who passes on and who answers all pay.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from bench import openloop
from bench.arms.client import SERVICE, Arms, Job, connect, many, stub_of
from bench.measure import Arm
from users.v1 import users_pb2

ROADS = ("mesh", "proxyless", "envoy")
_REQUEST = users_pb2.GetUserRequest(id="ada")


@asynccontextmanager
async def _stubs(job: Job) -> AsyncIterator[dict[str, Any]]:
    server = {
        "server_uri": job["plane"],
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3"],
    }
    # gRPC reads it when the first xds channel is made.
    os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = json.dumps({"xds_servers": [server], "node": {"id": "bench"}})
    async with (
        connect(job["addresses"]) as ours,
        grpc.aio.insecure_channel(f"xds:///{SERVICE}") as proxyless,
        grpc.aio.insecure_channel(job["sidecar"]) as beside,
    ):
        stubs = dict(zip(ROADS, map(stub_of, (ours, proxyless, beside)), strict=True))
        for stub in stubs.values():
            await stub.GetUser(_REQUEST, timeout=10, wait_for_ready=True)
        # Until every instance is connected, not only the first.
        await asyncio.sleep(0.3)
        yield stubs


@asynccontextmanager
async def spent(job: Job) -> AsyncIterator[Arms]:
    """CPU per call of all processes on each road; ours is the baseline."""
    async with _stubs(job) as stubs:
        others = {"proxyless": [job["plane_pid"]], "envoy": [job["sidecar_pid"]]}
        arms = {name: Arm(many(stubs[name]), (None, *job["pids"], *more)) for name, more in others.items()}
        yield Arm(many(stubs["mesh"]), (None, *job["pids"])), arms


async def shares(job: Job) -> dict[str, dict[str, float]]:
    """CPU per call of each that has a part in it, in µs: the medians of blocks that alternate."""
    between = {"mesh": {}, "proxyless": {"control plane": [job["plane_pid"]]}, "envoy": {"Envoy": [job["sidecar_pid"]]}}
    everyone = {road: {"caller": [None], **between[road], "servers": job["pids"]} for road in ROADS}
    found: dict[str, dict[str, list[float]]] = {road: {who: [] for who in of} for road, of in everyone.items()}
    async with _stubs(job) as stubs:
        for number in range(-1, 20):
            for road in ROADS[:: 1 if number % 2 else -1]:
                arms = {who: Arm(many(stubs[road]), pids) for who, pids in everyone[road].items()}
                before = {who: arm.spent_ns() for who, arm in arms.items()}
                await many(stubs[road])(job["calls"])
                if number >= 0:
                    for who, arm in arms.items():
                        found[road][who].append((arm.spent_ns() - before[who]) / job["calls"] / 1000)
    return {road: {who: statistics.median(us) for who, us in of.items()} for road, of in found.items()}


async def throughput(job: Job) -> dict[str, list[float]]:
    """Calls a second with 50 in flight, in blocks that alternate."""
    found: dict[str, list[float]] = {name: [] for name in ROADS}
    async with _stubs(job) as stubs:
        for number in range(-1, job["rounds"]):
            for name in ROADS[:: 1 if number % 2 else -1]:
                begun = time.perf_counter()
                await many(stubs[name])(job["calls"])
                if number >= 0:
                    found[name].append(job["calls"] / (time.perf_counter() - begun))
    return found


def latency(job: Job) -> dict[str, Any]:
    """Latencies of each road at a steady rate."""
    return openloop.run(_latency(job))


async def _latency(job: Job) -> dict[str, Any]:
    async with _stubs(job) as stubs:
        arms = {name: _caller(stub) for name, stub in stubs.items()}
        found = await openloop.drive(arms, rate=job["rate"], seconds=job["seconds"])
    return {name: latencies.to_json() for name, latencies in found.items()}


def _caller(stub: Any) -> Any:
    return lambda: stub.GetUser(_REQUEST, timeout=10)
