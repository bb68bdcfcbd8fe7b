"""EchoService behind EchoService: each server answers by asking the next one, the last one answers by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import mesh
from mesh.clock import Clock
from mesh.memory import MemoryStore
from mesh.policy import MethodPolicy, RetryPolicy
from mesh.server import Server
from mesh.settings import Settings
from mesh.wallclock import CLOCK
from support.echo import SERVICE, EchoResponse, EchoServicer, EchoServiceStub

QUICK = Settings(drain=1.0, settle=0.0)


class Still:
    """A clock that stands: budgets fade with time, so where it stands every extra attempt is paid for by calls."""

    def monotonic(self) -> float:
        return 1000.0

    def time(self) -> float:
        return CLOCK.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Relay(EchoServicer):
    """Asks the next server; as `how` says in a thread, or in a task that outlives the answer."""

    def __init__(self, name: str, stub: Any, blocking_stub: Any) -> None:
        super().__init__(name)
        self.how = ""
        self.metadata: list[dict[str, str | bytes]] = []
        self.later: list[asyncio.Task[Any]] = []
        self.failures: list[Any] = []
        self._stub, self._blocking = stub, blocking_stub

    async def Unary(self, request: Any, context: Any) -> Any:
        self.calls += 1
        self.metadata.append(dict(context.invocation_metadata()))
        try:
            return await self._ask(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _ask(self, request: Any) -> Any:
        if self.how == "thread":
            return await asyncio.to_thread(self._in_thread, request)
        if self.how == "task":
            self.later.append(asyncio.create_task(self._later(request)))
            return answered(request)
        if self.how == "detached":
            with mesh.detached():
                self.later.append(asyncio.create_task(self._later(request)))
            return answered(request)
        return await self._stub.Unary(request)

    async def _later(self, request: Any) -> Any:
        return await self._stub.Unary(request)

    def _in_thread(self, request: Any) -> Any:
        try:
            return self._blocking.Unary(request)
        except Exception as e:
            self.failures.append(e)
            raise


def answered(request: Any) -> Any:
    """Answer without asking anybody."""
    return EchoResponse(text=request.text, instance="relay")


class Chain:
    """So many servers in a row, and a caller's stub to the first."""

    def __init__(self, relays: list[Relay], leaf: EchoServicer, servers: list[Server], stub: Any) -> None:
        self.relays = relays
        self.leaf = leaf
        self.servers = servers
        self.stub = stub


@asynccontextmanager
async def chain(hops: int, *, attempts: int = 3, clock: Clock = CLOCK, leaf: Any = None) -> AsyncIterator[Chain]:
    """Serve a chain: `hops` calls from the caller to the leaf, so one server less that relays."""
    policy = MethodPolicy(idempotent=True, retry=RetryPolicy(max_attempts=attempts, initial_backoff=0.001))
    policies = {f"/{SERVICE}/Unary": policy}
    leaf = leaf or EchoServicer("leaf")
    async with AsyncExitStack() as stack:
        servers, relays = list[Server](), list[Relay]()

        async def serve(servicer: Any) -> str:
            server = Server(servicer, settings=QUICK, store=MemoryStore(), clock=clock)
            servers.append(await stack.enter_async_context(server))
            return str(server.endpoint)

        async def stub_of(address: str) -> Any:
            channel = mesh.connect(SERVICE, endpoints=[address], policies=policies, clock=clock)
            channel = await stack.enter_async_context(channel)
            await channel.channel_ready()
            return EchoServiceStub(channel)

        address = await serve(leaf)
        for number in range(hops - 1, 0, -1):
            blocking = mesh.blocking.connect(SERVICE, endpoints=[address], policies=policies)
            stack.push_async_callback(asyncio.to_thread, blocking.close)
            relays.insert(0, Relay(f"relay-{number}", await stub_of(address), EchoServiceStub(blocking)))
            address = await serve(relays[0])
        yield Chain(relays, leaf, servers, await stub_of(address))
