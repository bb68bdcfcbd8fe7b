"""The process behind `support.load`: `python -m support.loadgen '{"road": …}'`. Prints "ready" once the first calls
have gone well, then calls at a steady rate until stdin is closed, waits for those in flight, and writes what became of
all of them.

What a caller of the road would do and nothing more: no retries, no timeouts but a generous last one. The edge has two
kinds of callers, taking turns: HTTP/JSON over kept connections, and a plain gRPC channel.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from support.http1 import Client
from users.v1 import users_pb2, users_pb2_grpc

_LAST_TIMEOUT = 20.0
_SEEDED = 20
# Ten calls, seven of them reads; the order is fixed so that every run is alike.
_ROTA = ("get", "list", "get", "create", "get", "get", "update", "list", "get", "create")

_Step = Callable[[str, int], Awaitable[None]]


class _Failed(Exception):
    """An HTTP answer that is no 2xx."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(body[:300].decode("utf-8", "replace"))
        self.code = f"HTTP {status}"


class _Grpc:
    """Calls by the generated stub, on whichever channel."""

    def __init__(self, channel: grpc.aio.Channel, tag: str, timeout: float | None) -> None:
        self._stub = users_pb2_grpc.UserServiceStub(channel)
        self._tag, self._timeout = tag, timeout

    async def seed(self) -> None:
        for number in range(_SEEDED):
            await self("create", -1 - number)

    async def __call__(self, kind: str, number: int) -> None:
        tag, stub, known = self._tag, self._stub, f"{self._tag}-{-1 - number % _SEEDED}"
        match kind:
            case "get":
                await stub.GetUser(users_pb2.GetUserRequest(id=known), timeout=self._timeout)
            case "list":
                await stub.ListUsers(users_pb2.ListUsersRequest(page_size=5), timeout=self._timeout)
            case "create":
                user = users_pb2.User(id=f"{tag}-{number}", name="Load", email=f"{tag}-{number}@load.example")
                request = users_pb2.CreateUserRequest(user=user, request_id=str(uuid.uuid4()))
                await stub.CreateUser(request, timeout=self._timeout)
            case "update":
                change = users_pb2.UpdateUserRequest(
                    user=users_pb2.User(id=known, name=f"Load {number}"), request_id=str(uuid.uuid4())
                )
                await stub.UpdateUser(change, timeout=self._timeout)


class _Json:
    """Calls by HTTP/JSON, through the edge."""

    def __init__(self, client: Client, tag: str) -> None:
        self._client, self._tag = client, tag

    async def seed(self) -> None:
        for number in range(_SEEDED):
            await self("create", -1 - number)

    async def __call__(self, kind: str, number: int) -> None:
        tag, known = self._tag, f"{self._tag}-{-1 - number % _SEEDED}"
        match kind:
            case "get":
                await self._ask("GET", f"/v1/users/{known}")
            case "list":
                await self._ask("GET", "/v1/users?page_size=5")
            case "create":
                user = {"id": f"{tag}-{number}", "name": "Load", "email": f"{tag}-{number}@load.example"}
                await self._ask("POST", f"/v1/users?request_id={uuid.uuid4()}", user)
            case "update":
                await self._ask("PATCH", f"/v1/users/{known}?request_id={uuid.uuid4()}", {"name": f"Load {number}"})

    async def _ask(self, method: str, target: str, body: Any = None) -> None:
        answer = await self._client.ask(method, target, body)
        if not 200 <= answer.status < 300:
            raise _Failed(answer.status, answer.body)


@asynccontextmanager
async def _callers(job: Mapping[str, Any]) -> AsyncIterator[list[tuple[str, _Grpc | _Json]]]:
    tag = f"{job['road']}-{uuid.uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        if job["road"] == "mesh":
            import mesh

            channel = await stack.enter_async_context(mesh.connect("users.v1.UserService"))
            yield [("mesh", _Grpc(channel, tag, None))]
            return
        plain = await stack.enter_async_context(_edge_channel(job["edge"], job["tls"]))
        client = Client(job["edge"], job["tls"])
        stack.push_async_callback(client.close)
        yield [("json", _Json(client, f"{tag}-j")), ("grpc", _Grpc(plain, f"{tag}-g", _LAST_TIMEOUT))]


def _edge_channel(address: str, tls: Mapping[str, str] | None) -> grpc.aio.Channel:
    if not tls:
        return grpc.aio.insecure_channel(address)
    ca, cert, key = (Path(tls[part]).read_bytes() for part in ("ca", "cert", "key"))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert))


async def _one(step: _Step, name: str, kind: str, number: int, due: float) -> tuple[float, float, str, str, str]:
    code, detail = "OK", ""
    try:
        async with asyncio.timeout(_LAST_TIMEOUT):
            await step(kind, number)
    except grpc.aio.AioRpcError as e:
        code, detail = e.code().name, e.details() or ""
    except _Failed as e:
        code, detail = e.code, str(e)
    except Exception as e:
        code, detail = type(e).__name__, str(e)
    return due, time.monotonic() - due, f"{name} {kind}", code, detail


async def _drive(job: Mapping[str, Any]) -> list[tuple[float, float, str, str, str]]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, stop.set)
    async with _callers(job) as callers:
        for _, caller in callers:
            await caller.seed()
        print("ready", flush=True)
        tasks: list[asyncio.Task[tuple[float, float, str, str, str]]] = []
        begin, number = time.monotonic(), 0
        while not stop.is_set():
            due = begin + number / job["rate"]
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
                continue
            name, caller = callers[number % len(callers)]
            kind = _ROTA[number // len(callers) % len(_ROTA)]
            tasks.append(asyncio.create_task(_one(caller, name, kind, number, due)))
            number += 1
        return list(await asyncio.gather(*tasks))


def main() -> None:
    """Run one road's load."""
    job = json.loads(sys.argv[1])
    Path(job["out"]).write_text(json.dumps(asyncio.run(_drive(job))))


if __name__ == "__main__":
    main()
