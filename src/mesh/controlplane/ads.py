"""The aggregated discovery service: one task for each stream reads requests, another sends what became due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from mesh.controlplane.plane import Plane
from mesh.telemetry.metrics import XDS_ACKS, XDS_NACKS, XDS_PUSHES, XDS_REFUSED, XDS_STREAMS
from mesh.xds.resources import SHORT
from mesh.xds.stream import InvalidRequest, Outcome, Request, Response, Stream

_log = logging.getLogger("mesh.controlplane")

_MAX_ERROR, _MAX_PATH = 500, 4096
_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_Context = grpc.aio.ServicerContext[Any, bytes]


def add_discovery(plane: Plane, name: str, server: grpc.aio.Server) -> None:
    """Answer ADS streams out of the plane. Responses leave as bytes: see `_Connection._message`."""
    discovery = Discovery(plane, name)
    methods: dict[str, Any] = {
        "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
            discovery.StreamAggregatedResources, request_deserializer=discovery_pb2.DiscoveryRequest.FromString
        ),
        "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(discovery.DeltaAggregatedResources),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))


class Discovery:
    """Answers ADS streams out of a Plane."""

    def __init__(self, plane: Plane, name: str) -> None:
        self._plane = plane
        self._name = name

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: _Context) -> None:
        """Serve one client, state of the world."""
        connection = _Connection(self._plane, self._name, context)
        try:
            await connection.run(requests)
        except InvalidRequest as e:
            XDS_REFUSED.labels("invalid").inc()
            _log.warning("closed a stream: %s", e, extra={"event.action": "xds-invalid"})
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))

    async def DeltaAggregatedResources(self, requests: AsyncIterator[Any], context: _Context) -> None:
        """Refuse: the delta protocol is not spoken yet."""
        XDS_REFUSED.labels("delta").inc()
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "use the state-of-the-world protocol: api_type GRPC")


class _Connection:
    """One stream while it lasts."""

    def __init__(self, plane: Plane, name: str, context: _Context) -> None:
        self._plane = plane
        self._name = name
        self._context = context
        self._stream = Stream()
        self._secrets = ""
        self._sending = asyncio.Lock()

    async def run(self, requests: AsyncIterator[Any]) -> None:
        news = self._plane.attach()
        pushing = asyncio.create_task(self._push(news))
        client = ""
        try:
            async for message in requests:
                self._receive(message)
                if not client:
                    client = self._stream.audience
                    XDS_STREAMS.labels(client).inc()
                    _log.info("%s %s connected", client, self._stream.node_id, extra={"event.action": "xds-connected"})
                await self._send_due()
        finally:
            self._plane.detach(news)
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
            if client:
                XDS_STREAMS.labels(client).dec()

    async def _push(self, news: asyncio.Event) -> None:
        while True:
            await news.wait()
            news.clear()
            await self._send_due()

    async def _send_due(self) -> None:
        async with self._sending:
            snapshot = self._plane.snapshot((self._stream.audience, self._secrets)) if self._stream.node_id else None
            if snapshot is None:
                return
            for response in self._stream.due(snapshot):
                await self._context.write(self._message(response))
                XDS_PUSHES.labels(SHORT[response.type_url]).inc()

    def _receive(self, message: Any) -> None:
        if not self._stream.node_id:
            self._secrets = _secrets(message.node)
        request = Request(
            type_url=message.type_url,
            names=tuple(message.resource_names),
            version=message.version_info,
            nonce=message.response_nonce,
            error=message.error_detail.message if message.HasField("error_detail") else None,
            node_id=message.node.id,
            user_agent=message.node.user_agent_name,
        )
        outcome = self._stream.receive(request)
        if outcome is Outcome.ACKED:
            XDS_ACKS.labels(SHORT[request.type_url]).inc()
        elif outcome is Outcome.REFUSED:
            self._refused(request)
        elif outcome is not Outcome.SUBSCRIBED:
            XDS_REFUSED.labels(str(outcome)).inc()

    def _refused(self, request: Request) -> None:
        XDS_NACKS.labels(SHORT[request.type_url]).inc()
        _log.error(
            "%s refused %s: %s",
            self._stream.node_id,
            SHORT[request.type_url],
            (request.error or "")[:_MAX_ERROR],
            extra={"event.action": "xds-nack", "mesh.xds.type": SHORT[request.type_url]},
        )

    def _message(self, response: Response) -> bytes:
        # Of all that a service's clients are sent only the nonce differs. A message of protobuf made for each would
        # copy ten thousand endpoints several times; their bytes are in the resource, in the form that is sent.
        head = discovery_pb2.DiscoveryResponse(
            version_info=response.version,
            nonce=response.nonce,
            type_url=response.type_url,
            control_plane=base_pb2.ControlPlane(identifier=self._name),
        )
        return b"".join([head.SerializeToString(), *(resource.entry for resource in response.resources)])


def _secrets(node: Any) -> str:
    """Where a client keeps its certificates, as its node says: the folder of an Envoy, or the provider that a gRPC
    client's bootstrap names.
    """
    place = node.metadata.fields["secrets"].string_value if "secrets" in node.metadata.fields else ""
    return place if len(place) <= _MAX_PATH else ""
