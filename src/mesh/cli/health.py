"""Asks a process how it is, from outside: gRPC health, and a plain GET for Envoy's admin page."""

from __future__ import annotations

import asyncio
import http.client

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.credentials import channel_credentials
from mesh.instance import Endpoint
from mesh.settings import TLSFiles

# Loopback answers in a millisecond; a process that is still importing has not bound its port yet.
_PATIENCE = 2.0
# One connection attempt per question: gRPC's own backoff would make a fresh process look dead for a second.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(endpoint: Endpoint | str, tls: TLSFiles | None) -> grpc.aio.Channel:
    """Return a plain channel to one address; it connects when first used."""
    if tls is None:
        return grpc.aio.insecure_channel(str(endpoint), options=_OPTIONS)
    return grpc.aio.secure_channel(str(endpoint), channel_credentials(tls), options=_OPTIONS)


async def is_serving(channel: grpc.aio.Channel, service: str = "") -> bool | None:
    """Whether the server says SERVING; None if it does not answer at all."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=_PATIENCE)
    except grpc.aio.AioRpcError as e:
        return None if e.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) else False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def connects(endpoint: Endpoint, tls: TLSFiles | None) -> bool:
    """Whether a gRPC connection can be made, TLS included."""
    async with open_channel(endpoint, tls) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), _PATIENCE)
        except TimeoutError:
            return False
        return True


async def fetch(endpoint: Endpoint, path: str, *, verb: str = "GET") -> str | None:
    """Return a page of Envoy's admin interface, or None if it does not answer with 200."""
    return await asyncio.to_thread(_fetch, endpoint, path, verb)


def _fetch(endpoint: Endpoint, path: str, verb: str) -> str | None:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=_PATIENCE)
    try:
        connection.request(verb, path)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return text if answer.status == 200 else None
