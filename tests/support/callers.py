"""The callers of `support.loadgen`: the mesh client, asyncio ("mesh") and blocking ("blocking"), and what comes to
Envoy ("edge"), which is of two kinds that take turns: HTTP/JSON over kept connections, and a plain gRPC channel.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import grpc
from prometheus_client import REGISTRY

from support.http1 import Client
from users.v1 import users_pb2, users_pb2_grpc

SERVICE = "users.v1.UserService"
SEEDED = 20
# More calls than can be under way at once: 300 a second with a deadline of a second leave no more.
_THREADS = 200

State = Mapping[str, Any]
"""known, ready: endpoints of the client's list, and those of it that calls go to. ejected: how many of them a breaker
keeps calls from. tasks, fds, threads: what the process holds. The rest are counters: calls, attempts, ejections,
compactions, skipped (records)."""


class Caller(Protocol):
    """Makes calls of some kinds."""

    name: str
    patience: float
    """Seconds after which a call is given up, whatever the road says."""

    async def __call__(self, kind: str, number: int, timeout: float | None = None) -> None:
        """Make one call."""


class BadStatus(Exception):
    """An HTTP answer that is no 2xx."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(body[:300].decode("utf-8", "replace"))
        self.code = f"HTTP {status}"


def _request(tag: str, kind: str, number: int) -> tuple[str, Any]:
    """The method and the message of a call. Every write carries a request_id."""
    known = f"{tag}-{-1 - number % SEEDED}"
    match kind:
        case "get":
            return "GetUser", users_pb2.GetUserRequest(id=known)
        case "list":
            return "ListUsers", users_pb2.ListUsersRequest(page_size=5)
        case "create":
            user = users_pb2.User(id=f"{tag}-{number}", name="Load", email=f"{tag}-{number}@load.example")
            return "CreateUser", users_pb2.CreateUserRequest(user=user, request_id=str(uuid.uuid4()))
        case "update":
            user = users_pb2.User(id=known, name=f"Load {number}")
            return "UpdateUser", users_pb2.UpdateUserRequest(user=user, request_id=str(uuid.uuid4()))
    raise ValueError(kind)


class _Asyncio:
    """Calls by the generated stub, on whichever asyncio channel."""

    def __init__(self, name: str, channel: grpc.aio.Channel, tag: str, timeout: float | None, patience: float) -> None:
        self.name, self.patience = name, patience
        self._stub = users_pb2_grpc.UserServiceStub(channel)
        self._tag, self._timeout = tag, timeout

    async def __call__(self, kind: str, number: int, timeout: float | None = None) -> None:
        method, request = _request(self._tag, kind, number)
        await getattr(self._stub, method)(request, timeout=timeout or self._timeout)


class _Blocking:
    """Calls by the generated stub from threads, which are all there from the start."""

    def __init__(self, channel: grpc.Channel, tag: str, timeout: float | None, patience: float) -> None:
        self.name, self.patience = "blocking", patience
        self._stub = users_pb2_grpc.UserServiceStub(channel)
        self._tag, self._timeout = tag, timeout
        self._threads = ThreadPoolExecutor(_THREADS)
        together = threading.Barrier(_THREADS)
        for _ in range(_THREADS):
            self._threads.submit(together.wait)

    async def __call__(self, kind: str, number: int, timeout: float | None = None) -> None:
        method, request = _request(self._tag, kind, number)
        call, timeout = getattr(self._stub, method), timeout or self._timeout
        await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(request, timeout=timeout))


class _Json:
    """Calls by HTTP/JSON, through the edge."""

    name = "json"

    def __init__(self, client: Client, tag: str, timeout: float | None, patience: float) -> None:
        self.patience = patience
        self._client, self._tag, self._timeout = client, tag, timeout

    async def __call__(self, kind: str, number: int, timeout: float | None = None) -> None:
        tag, known = self._tag, f"{self._tag}-{-1 - number % SEEDED}"
        ask = partial(self._ask, timeout or self._timeout)
        match kind:
            case "get":
                await ask("GET", f"/v1/users/{known}")
            case "list":
                await ask("GET", "/v1/users?page_size=5")
            case "create":
                user = {"id": f"{tag}-{number}", "name": "Load", "email": f"{tag}-{number}@load.example"}
                await ask("POST", f"/v1/users?request_id={uuid.uuid4()}", user)
            case "update":
                await ask("PATCH", f"/v1/users/{known}?request_id={uuid.uuid4()}", {"name": f"Load {number}"})

    async def _ask(self, timeout: float | None, method: str, target: str, body: Any = None) -> None:
        headers = {"grpc-timeout": f"{timeout * 1000:.0f}m"} if timeout else {}
        answer = await self._client.ask(method, target, body, headers)
        if not 200 <= answer.status < 300:
            raise BadStatus(answer.status, answer.body)


@dataclass
class Road:
    """Who calls on a road, and what they hold."""

    callers: Sequence[Caller]
    pool: Any = None
    """Of the mesh client; the edge's callers have none."""
    tasks: Callable[[], int] = field(default=lambda: len(asyncio.all_tasks()))

    def view(self) -> dict[str, Any]:
        """Tell what is known of instances now."""
        roster = self.pool.roster if self.pool is not None else None
        return {
            "known": [str(i.endpoint) for i in roster.view.instances] if roster else [],
            "ready": [slot.name for slot in roster.pickable] if roster else [],
            "ejected": sum(not slot.breaker.is_closed for slot in roster.slots) if roster else 0,
        }

    def state(self) -> dict[str, Any]:
        """Tell what is known and held now. It takes some milliseconds, in which nothing else is done here."""
        return {
            **self.view(),
            "tasks": self.tasks(),
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "calls": _counted("mesh_client_calls_total"),
            "attempts": _counted("mesh_client_attempts_total"),
            "ejections": _counted("mesh_client_breaker_transitions_total", to="open"),
            "compactions": _counted("mesh_registry_compactions_total"),
            "skipped": _counted("mesh_registry_records_skipped_total"),
        }


def _counted(name: str, **labels: str) -> float:
    """A counter of this process, over all its labels but those named."""
    found = [s for metric in REGISTRY.collect() for s in metric.samples if s.name == name]
    return sum(s.value for s in found if labels.items() <= s.labels.items())


@asynccontextmanager
async def open_road(job: Mapping[str, Any], last_timeout: float) -> AsyncIterator[Road]:
    """Open the road of a job: "road", "edge", "tls" and perhaps "deadline"."""
    tag, deadline = f"{job['road']}-{uuid.uuid4().hex[:8]}", job.get("deadline")
    # A road that keeps the deadline itself is given a moment to say so.
    patience = deadline + 0.5 if deadline else last_timeout
    async with AsyncExitStack() as stack:
        if job["road"] == "mesh":
            import mesh

            channel: Any = await stack.enter_async_context(mesh.connect(SERVICE))
            yield Road([_Asyncio("mesh", channel, tag, deadline, patience)], channel._pool)
        elif job["road"] == "blocking":
            import mesh.blocking

            twin: Any = stack.enter_context(mesh.blocking.connect(SERVICE))
            loop = twin._thread.loop
            yield Road(
                [_Blocking(twin, tag, deadline, patience)], twin._inner._pool, lambda: len(asyncio.all_tasks(loop))
            )
        else:
            plain = await stack.enter_async_context(_edge_channel(job["edge"], job["tls"]))
            client = Client(job["edge"], job["tls"])
            stack.push_async_callback(client.close)
            json_patience = deadline or last_timeout
            timeout = deadline or last_timeout
            yield Road(
                [
                    _Json(client, f"{tag}-j", deadline, json_patience),
                    _Asyncio("grpc", plain, f"{tag}-g", timeout, patience),
                ]
            )


def _edge_channel(address: str, tls: Mapping[str, str] | None) -> grpc.aio.Channel:
    if not tls:
        return grpc.aio.insecure_channel(address)
    ca, cert, key = (Path(tls[part]).read_bytes() for part in ("ca", "cert", "key"))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert))
