"""A plain client by hand: bare grpc.aio that watches etcd, keeps a connection to each instance and calls those in turns
that are connected. No retries, breakers, metrics, nor a second thought about anything: it hears of a connection that
broke when its watch does, where ours asks as soon as a call has failed.

What it takes to follow an event is grpc.aio's and Python's; what ours takes beyond it is ours.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

import grpc
from grpc import aio

from bench.rivals import SERVICE
from grpcmesh.etcd.v3 import etcd_pb2
from mesh.etcd import wire
from mesh.instance import State
from mesh.registry import record

_READY = grpc.ChannelConnectivity.READY
# Two channels to one address must not share a connection.
_OWN = [("grpc.use_local_subchannel_pool", 1)]


class ByHand:
    """Stands where a channel stands, as far as unary calls go."""

    def __init__(self, etcd: str, prefix: str, begun: Callable[[str, Any], object]) -> None:
        """begun: hears of each call to an address."""
        self._begun = begun
        self._etcd = aio.insecure_channel(etcd)
        self._prefix = record.service_prefix(prefix, SERVICE)
        self._known: dict[bytes, aio.Channel] = {}
        self._turns: list[tuple[str, aio.Channel]] = []
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._some = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._run(self._follow())
        await self._some.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for channel in (self._etcd, *self._known.values()):
            await channel.close()

    def unary_unary(self, path: str, encode: Any, decode: Any) -> Callable[..., Any]:
        """Return what calls the next one in turn."""
        made: dict[aio.Channel, Any] = {}

        def call(request: Any, **options: Any) -> Any:
            self._next += 1
            address, channel = self._turns[self._next % len(self._turns)]
            if channel not in made:
                made[channel] = channel.unary_unary(path, encode, decode)
            made_call = made[channel](request, **options)
            self._begun(address, made_call)
            return made_call

        return call

    async def _follow(self) -> None:
        watch = self._etcd.stream_stream(wire.WATCH.path, wire.WATCH.encode, wire.WATCH.decode)()
        # From the beginning: what stands there is told as news.
        await watch.write(wire.watch_request(self._prefix, 1))
        while (news := await watch.read()) is not aio.EOF:
            for event in news.events:
                self._heard(event)

    def _heard(self, event: etcd_pb2.Event) -> None:
        key, known = event.kv.key, self._known.get(event.kv.key)
        written = {} if event.deleted else json.loads(event.kv.value)
        if not written or written["Metadata"]["state"] != State.READY:
            self._turns = [turn for turn in self._turns if turn[1] is not known]
            if event.deleted:
                self._known.pop(key, None)
        elif known is None:
            self._known[key] = channel = aio.insecure_channel(f"ipv4:{written['Addr']}", options=_OWN)
            self._run(self._keep(key, written["Addr"], channel))

    async def _keep(self, key: bytes, address: str, channel: aio.Channel) -> None:
        """Have it in the turns while it is connected; let go of it when it is gone."""
        while self._known.get(key) is channel:
            state = channel.get_state(try_to_connect=True)
            self._turns = [turn for turn in self._turns if turn[1] is not channel]
            if state is _READY:
                self._turns.append((address, channel))
                self._some.set()
            await channel.wait_for_state_change(state)
        self._turns = [turn for turn in self._turns if turn[1] is not channel]
        await channel.close()

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
