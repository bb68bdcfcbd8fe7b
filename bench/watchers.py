"""Processes that watch a fleet: `python -m bench.watchers JOB`, JOB being JSON.

    {"kind": "mesh", "etcd": "host:port", "count": 50}    resolvers, each with an etcd session of its own
    {"kind": "raw", …}                                    bare grpc stubs of etcd's Watch, the same
    {"kind": "xds", "plane": "host:port", "count": 10}    bare streams of a control plane that ask for the endpoints,
                                                          take them as bytes and accept them unread

Prints a line once every watcher knows the fleet. Each line on stdin is answered with what was noticed since the last
one: {"noticed": [[nanoseconds of the monotonic clock, …] for each watcher], "bytes": received}. Ends with its stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import grpc

from bench.fleet import MESH, RAW, SERVICE
from mesh.etcd import EtcdStore
from mesh.etcd.wire import WATCH, watch_request
from mesh.instance import Endpoint, View
from mesh.registry import Resolver
from mesh.registry.record import service_prefix
from mesh.xds.resources import CLUSTER, ENDPOINTS


class Watcher:
    """What one watcher noticed, and when."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        self.noticed: list[int] = []
        self.bytes = 0
        self.knows = asyncio.Event()

    def note(self, size: int = 0) -> None:
        """Note that something was told now."""
        self.noticed.append(time.monotonic_ns())
        self.bytes += size
        self.knows.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        raise NotImplementedError


class MeshWatcher(Watcher):
    """A resolver with one subscription, as a client of the service has it."""

    async def run(self) -> None:
        async with EtcdStore([Endpoint.parse(self.job["etcd"])]) as store:
            resolver = Resolver(store, MESH)
            resolver.subscribe(SERVICE, self._told)
            try:
                await asyncio.Event().wait()
            finally:
                await resolver.aclose()

    def _told(self, view: View) -> None:
        if view.known:
            self.note()


class RawWatcher(Watcher):
    """A stub of etcd's Watch that reads each event and does nothing with it."""

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self.job["etcd"], [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.stream_stream(WATCH.path, WATCH.encode, WATCH.decode)()
            await call.write(watch_request(service_prefix(RAW, SERVICE), 0))
            async for answer in call:
                self.knows.set()  # the first answer says that the watch is there
                for _ in answer.events:
                    self.note()


class XdsWatcher(Watcher):
    """A client of the control plane that asks for clusters and the service's endpoints, and accepts what it gets.

    It reads the nonce and leaves the endpoints as bytes: hundreds share a machine with the control plane.
    """

    async def run(self) -> None:
        from envoy.config.core.v3 import base_pb2
        from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest

        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self.job["plane"], options) as channel:
            call: Any = channel.stream_stream(_ADS, DiscoveryRequest.SerializeToString)(wait_for_ready=True)
            node = base_pb2.Node(id=f"bench-{id(self)}", user_agent_name="envoy")
            names = {CLUSTER: [], ENDPOINTS: [SERVICE]}
            for kind, asked in names.items():
                await call.write(DiscoveryRequest(node=node, type_url=kind, resource_names=asked))
            async for answer in call:
                told = head(answer)
                if told["type_url"] == ENDPOINTS:
                    self.note(len(answer))
                await call.write(
                    DiscoveryRequest(
                        type_url=told["type_url"],
                        resource_names=names[told["type_url"]],
                        version_info=told["version_info"],
                        response_nonce=told["nonce"],
                    )
                )


_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
_TEXTS = {1: "version_info", 4: "type_url", 5: "nonce"}


def head(answer: bytes) -> dict[str, str]:
    """Return the texts of a DiscoveryResponse, whose fields all have a length; the resources are passed over."""
    found, at = {}, 0
    while at < len(answer):
        number, size, shift = answer[at] >> 3, 0, 0
        while True:
            at += 1
            size |= (answer[at] & 127) << shift
            shift += 7
            if answer[at] < 128:
                break
        at += 1
        if number in _TEXTS:
            found[_TEXTS[number]] = answer[at : at + size].decode()
        at += size
    return found


KINDS: dict[str, type[Watcher]] = {"mesh": MeshWatcher, "raw": RawWatcher, "xds": XdsWatcher}


async def _serve(job: Mapping[str, Any]) -> None:
    watchers = [KINDS[job["kind"]](job) for _ in range(job["count"])]
    tasks = [asyncio.create_task(watcher.run()) for watcher in watchers]
    all_know = asyncio.gather(*(watcher.knows.wait() for watcher in watchers))
    waited: list[asyncio.Future[Any]] = [*tasks, all_know]
    while not all_know.done():
        await asyncio.wait(waited, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    print(json.dumps({"watching": len(watchers)}), flush=True)
    orders: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    threading.Thread(target=_read, args=(loop, orders), daemon=True).start()
    while await orders.get():
        told = {"noticed": [w.noticed for w in watchers], "bytes": sum(w.bytes for w in watchers)}
        for watcher in watchers:
            watcher.noticed, watcher.bytes = [], 0
        print(json.dumps(told), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _read(loop: asyncio.AbstractEventLoop, orders: asyncio.Queue[str]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(orders.put_nowait, line)
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(orders.put_nowait, "")


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
