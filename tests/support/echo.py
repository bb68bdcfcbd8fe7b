"""EchoService: a tiny servicer that does what the request says, its messages and its stubs, compiled as it is imported.

    from support.echo import EchoRequest, EchoResponse, EchoServicer, EchoServiceStub, SERVICE

Run as a program, `python -m support.echo` with tests/ on the path, it is served on the mesh by the settings in the
environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

_PROTOS = str(Path(__file__).parent / "protos")
if _PROTOS not in sys.path:
    sys.path.append(_PROTOS)

# Needs grpcio-tools, which the dev extra brings; the result is what protoc would have written.
echo_pb2: Any
echo_pb2_grpc: Any
echo_pb2, echo_pb2_grpc = grpc.protos_and_services("echo/v1/echo.proto")

SERVICE = "echo.v1.EchoService"
EchoRequest = echo_pb2.EchoRequest
EchoResponse = echo_pb2.EchoResponse
EchoServiceStub = echo_pb2_grpc.EchoServiceStub


class EchoServicer(echo_pb2_grpc.EchoServiceServicer):
    """Echoes, sleeps and fails as asked. `calls` counts begun handlers, `cancelled` those that were cancelled."""

    def __init__(self, name: str = "") -> None:
        self.name = name or os.environ.get("MESH_INSTANCE_ID", "")
        self.calls = 0
        self.cancelled = 0

    async def Unary(self, request: Any, context: Any) -> Any:
        self.calls += 1
        return await self._answer(request, context)

    async def ServerStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls += 1
        for _ in range(request.count):
            yield await self._answer(request, context, fail=False)
        self._fail(request)

    async def ClientStream(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        self.calls += 1
        texts = []
        async for request in request_iterator:
            await self._answer(request, context)
            texts.append(request.text)
        return EchoResponse(text=" ".join(texts), instance=self.name)

    async def Bidi(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.calls += 1
        async for request in request_iterator:
            yield await self._answer(request, context)

    async def _answer(self, request: Any, context: Any, *, fail: bool = True) -> Any:
        if request.sleep:
            await self._sleep(request)
        if fail:
            self._fail(request)
        remaining = context.time_remaining()
        return EchoResponse(
            text=request.text, instance=self.name, remaining=-1.0 if remaining is None else float(remaining)
        )

    async def _sleep(self, request: Any) -> None:
        if request.block:
            time.sleep(request.sleep)
            return None
        while True:
            try:
                return await asyncio.sleep(request.sleep)
            except asyncio.CancelledError:
                self.cancelled += 1
                if not request.stubborn:
                    raise

    @staticmethod
    def _fail(request: Any) -> None:
        if request.fail == "RAISE":
            raise RuntimeError(f"echo was asked to break by {request.text!r}")
        if request.fail:
            from mesh.errors import Refusal

            raise Refusal(
                grpc.StatusCode[request.fail], "echo was asked to refuse", "ASKED_TO", "echo.v1", {"text": request.text}
            )


if __name__ == "__main__":
    import mesh

    asyncio.run(mesh.serve(EchoServicer()))
