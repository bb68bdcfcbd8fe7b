"""Our side of `rivals/go`: the same orders over stdin, the same answers, one line of JSON each.

    python -m bench.rivals.caller raw ADDRESS | mesh ETCD PREFIX | least ETCD PREFIX | hand ETCD PREFIX

"start RATE" begins calls on a fixed schedule that waits for no answer, each with a deadline of a second; "stop" ends
them and tells what became of each; "closed CALLS AT_ONCE" makes so many calls, as fast as they go.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import grpc

import mesh
from bench import openloop
from bench.rivals import SERVICE
from bench.rivals.by_hand import ByHand
from mesh.client.attempts import Attempts
from mesh.client.ended import peek
from mesh.client.roster import Picked
from mesh.instance import Endpoint
from mesh.policy import Balancer
from mesh.resilience.outcome import was_surely_not_processed
from mesh.settings import Settings
from users.v1 import users_pb2

_METHOD = f"/{SERVICE}/GetUser"
_REQUEST = users_pb2.GetUserRequest(id="ada")
_DEADLINE = 1.0
Ended = tuple[int, int, int, str, str]
"""Due, begun, ended (nanoseconds of the wall clock), code, instance."""


class Notes:
    """When an attempt went to whom: of a server that was killed, only its callers can tell.

    An attempt is noted when it is handed to gRPC, and taken back if gRPC says that it had no connection to send it on.
    In Go the connection itself tells of those that it takes.
    """

    def __init__(self) -> None:
        self.attempts: list[tuple[int, str]] = []

    def of_ours(self) -> None:
        """Note those of the mesh's channels."""
        launch, account = Attempts._launch, Attempts._account

        def launched(call: Attempts, picked: Picked, now: float) -> Any:
            vars(call).setdefault("noted", {})[picked[0].name] = self._note(picked[0].name)
            return launch(call, picked, now)

        def failed(call: Attempts, code: str, details: str, now: float) -> None:
            self._failed(vars(call)["noted"][call._slot.name], code, details)
            account(call, code, details, now)

        Attempts._launch, Attempts._account = launched, failed  # type: ignore[method-assign]  # no hook tells as much

    def of_hand(self, address: str, call: Any) -> None:
        """Note a call of `ByHand`."""
        note = self._note(address)
        call.add_done_callback(lambda ended: self._failed(note, peek(ended.code()).name, peek(ended.details()) or ""))

    def _note(self, address: str) -> tuple[int, str]:
        note = time.time_ns(), address
        self.attempts.append(note)
        return note

    def _failed(self, note: tuple[int, str], code: str, details: str) -> None:
        if was_surely_not_processed(code, details, note[1]) and note in self.attempts:
            self.attempts.remove(note)


class Caller:
    """Makes the calls."""

    def __init__(self, channel: Any, notes: Notes) -> None:
        self._get = channel.unary_unary(_METHOD, users_pb2.GetUserRequest.SerializeToString, users_pb2.User.FromString)
        self._notes = notes
        self._ended: list[Ended] = []
        self._load: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def ready(self) -> None:
        """Return when a call was answered."""
        await self._get(_REQUEST, timeout=10, wait_for_ready=True)
        self._notes.attempts.clear()

    def start(self, rate: float) -> dict[str, Any]:
        """Begin a load on a schedule."""
        self._load = asyncio.create_task(self._pace(1 / rate))
        return {"started": True}

    async def stop(self) -> dict[str, Any]:
        """End it, wait for the last call, and tell everything."""
        assert self._load is not None
        self._load.cancel()
        await asyncio.gather(self._load, *self._calls, return_exceptions=True)
        told = {"calls": self._ended, "attempts": list(self._notes.attempts)}
        self._ended = []
        self._notes.attempts.clear()
        return told

    async def closed(self, calls: int, at_once: int) -> dict[str, Any]:
        """Make so many calls and tell what they cost this process."""
        left, failed = iter(range(calls)), 0

        async def some() -> None:
            nonlocal failed
            for _ in left:
                try:
                    await self._get(_REQUEST, timeout=10)
                except grpc.RpcError:
                    failed += 1

        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        await asyncio.gather(*(some() for _ in range(at_once)))
        spent, took = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        return {"cpu_ns": spent, "wall_ns": took, "calls": calls, "failed": failed}

    async def _pace(self, every: float) -> None:
        due = time.time()
        while True:
            if (wait := due - time.time()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._one(int(due * 1e9)))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
            due += every

    async def _one(self, due: int) -> None:
        code, instance, begun = "OK", "", time.time_ns()
        try:
            instance = (await self._get(_REQUEST, timeout=_DEADLINE)).name
        except grpc.RpcError as e:
            code = e.code().name
        self._ended.append((due, begun, time.time_ns(), code, instance))


async def _obey(caller: Caller) -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        match line.decode().split():
            case ["start", rate]:
                told = caller.start(float(rate))
            case ["stop"]:
                told = await caller.stop()
            case ["closed", calls, at_once]:
                told = await caller.closed(int(calls), int(at_once))
            case other:
                raise SystemExit(f"no such order: {other}")
        print(json.dumps(told), flush=True)


def _open(kind: str, words: list[str], notes: Notes) -> Any:
    if kind == "raw":
        return grpc.aio.insecure_channel(words[0])
    etcd, prefix = words
    is_noted = bool(os.environ.get("RIVALS_NOTE"))
    if kind == "hand":
        return ByHand(etcd, prefix, notes.of_hand if is_noted else lambda *_: None)
    if is_noted:
        notes.of_ours()
    settings = Settings(etcd=(Endpoint.parse(etcd),), prefix=prefix)
    return mesh.connect(SERVICE, settings=settings, balancer=Balancer.LEAST_LOADED if kind == "least" else None)


async def _main(kind: str, *words: str) -> None:
    notes = Notes()
    async with _open(kind, list(words), notes) as channel:
        caller = Caller(channel, notes)
        await caller.ready()
        print(json.dumps({"ready": True}), flush=True)
        await _obey(caller)


if __name__ == "__main__":
    openloop.run(_main(*sys.argv[1:]))
