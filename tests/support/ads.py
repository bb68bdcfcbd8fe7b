"""A client of the control plane's ADS stream, for tests: requests sent, responses taken one by one."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.rpc import status_pb2

from mesh.instance import Endpoint

SILENCE = 0.3


class Ads:
    """One stream. `ask` sends, `take` waits for a response, `silent` asserts that none comes."""

    def __init__(self, address: Endpoint, node: str = "test", agent: str = "envoy") -> None:
        self._channel = grpc.aio.insecure_channel(str(address))
        self._node = base_pb2.Node(id=node, user_agent_name=agent)

    async def __aenter__(self) -> Self:
        self._call: Any = ads_pb2_grpc.AggregatedDiscoveryServiceStub(self._channel).StreamAggregatedResources()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        await self._channel.close()

    async def ask(self, type_url: str, *names: str, version: str = "") -> None:
        """Subscribe."""
        await self._call.write(
            discovery_pb2.DiscoveryRequest(
                node=self._node, type_url=type_url, resource_names=names, version_info=version
            )
        )

    async def answer(self, response: Any, *names: str, error: str = "") -> None:
        """Accept a response, or refuse it."""
        await self._call.write(
            discovery_pb2.DiscoveryRequest(
                type_url=response.type_url,
                resource_names=names,
                version_info=response.version_info,
                response_nonce=response.nonce,
                error_detail=status_pb2.Status(code=13, message=error) if error else None,
            )
        )

    async def take(self, seconds: float = 5.0) -> Any:
        """Wait for a response."""
        async with asyncio.timeout(seconds):
            response = await self._call.read()
        assert response is not grpc.aio.EOF, await self._call.details()
        return response

    async def silent(self, seconds: float = SILENCE) -> None:
        """Assert that nothing comes for a while. The stream cannot be used afterwards."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._call.read()
        except TimeoutError:
            return
        raise AssertionError(f"sent without need: {response}")

    async def code(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the stream's end."""
        async with asyncio.timeout(5):
            return await self._call.code(), await self._call.details()
