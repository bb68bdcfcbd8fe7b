"""Small plain grpc.aio servers of one service in this process, whose answers a test decides: for tests of the client.

    async with fleet(3) as hosts:
        hosts[0].answer = refuse("UNAVAILABLE")

Service `t.Test` has the four kinds of methods, UU, US, SU and SS, over bytes. Every method asks `answer` for each
message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import aio

from mesh.policy import MethodPolicy, RetryPolicy

SERVICE = "t.Test"
UU, US, SU, SS = (f"/{SERVICE}/{name}" for name in ("UU", "US", "SU", "SS"))
QUICK = RetryPolicy(initial_backoff=0.001, max_backoff=0.01)
IDEMPOTENT = {path: MethodPolicy(idempotent=True, retry=QUICK) for path in (UU, US, SU, SS)}

Answer = Callable[[bytes, Any], Awaitable[bytes]]


async def echo(message: bytes, context: Any) -> bytes:
    return message


def refuse(code: str, details: str = "refused by the test", trailing: tuple[tuple[str, str], ...] = ()) -> Answer:
    async def answer(message: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode[code], details, trailing)
        raise AssertionError

    return answer


def slow(seconds: float) -> Answer:
    async def answer(message: bytes, context: Any) -> bytes:
        await asyncio.sleep(seconds)
        return message

    return answer


class Host:
    """One server. `calls` counts begun calls, `metadata` holds what each of them brought."""

    def __init__(self) -> None:
        self.answer: Answer = echo
        self.calls = 0
        self.metadata: list[dict[str, str | bytes]] = []
        self.port = 0
        self._server: aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """Bind the port it had before, or any."""
        self._server = server = aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            "UU": grpc.unary_unary_rpc_method_handler(self._unary),
            "US": grpc.unary_stream_rpc_method_handler(self._several),
            "SU": grpc.stream_unary_rpc_method_handler(self._joined),
            "SS": grpc.stream_stream_rpc_method_handler(self._each),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        target = f"127.0.0.1:{self.port}"
        self.port = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
        await server.start()

    async def stop(self) -> None:
        """Cut every connection."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)

    def _begun(self, context: Any) -> None:
        self.calls += 1
        self.metadata.append(dict(context.invocation_metadata()))

    async def _unary(self, request: bytes, context: Any) -> bytes:
        self._begun(context)
        return await self.answer(request, context)

    async def _several(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self._begun(context)
        for number in range(3):
            yield await self.answer(request + str(number).encode(), context)

    async def _joined(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self._begun(context)
        return b" ".join([await self.answer(r, context) async for r in requests])

    async def _each(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self._begun(context)
        async for request in requests:
            yield await self.answer(request, context)


@asynccontextmanager
async def fleet(
    size: int, credentials: Callable[[], grpc.ServerCredentials] | None = None
) -> AsyncIterator[list[Host]]:
    """Run so many hosts. `credentials` makes those of each: dynamic ones are good for one server."""
    hosts = [Host() for _ in range(size)]
    try:
        for host in hosts:
            await host.start(credentials() if credentials is not None else None)
        yield hosts
    finally:
        await asyncio.gather(*(host.stop() for host in hosts))


async def until(claim: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until the claim holds; fail after so long."""
    end = asyncio.get_running_loop().time() + seconds
    while not claim():
        assert asyncio.get_running_loop().time() < end, "it did not come true in time"
        await asyncio.sleep(0.002)
