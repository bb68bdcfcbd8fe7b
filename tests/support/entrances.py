"""The entrances of a running stack, as tests use them: an HTTP request, a gRPC call byte for byte, bytes on a socket.

Every function takes an address and, where the stack speaks TLS, the files "ca", "cert" and "key".
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from support.http1 import Answer, Client

TLS = Mapping[str, str] | None
SERVICE = "users.v1.UserService"


def ask(
    address: str, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None, tls: TLS = None
) -> Answer:
    """Make one HTTP/1.1 request on a new connection."""

    async def story() -> Answer:
        client = Client(address, tls)
        try:
            async with asyncio.timeout(20):
                return await client.ask(method, target, body, headers)
        finally:
            await client.close()

    return asyncio.run(story())


def channel(address: str, tls: TLS = None, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """Open a plain gRPC channel, without retries of its own."""
    options = [("grpc.enable_retries", 0), *options]
    if not tls:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials(tls), options=options)


def credentials(tls: Mapping[str, str]) -> grpc.ChannelCredentials:
    """Read a client's credentials; without "cert" it shows none."""
    ca = Path(tls["ca"]).read_bytes()
    if "cert" not in tls:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(ca, Path(tls["key"]).read_bytes(), Path(tls["cert"]).read_bytes())


def call_bytes(
    address: str, method: str, request: bytes, timeout: float | None = 15.0, tls: TLS = None
) -> tuple[grpc.StatusCode, str, bytes]:
    """Send bytes as a gRPC request of the UserService, whether they are one or not; return code, details and answer."""
    with channel(address, tls, [("grpc.max_send_message_length", -1)]) as to:
        send: Any = to.unary_unary(f"/{SERVICE}/{method}")
        try:
            return grpc.StatusCode.OK, "", send(request, timeout=timeout)
        except grpc.RpcError as e:
            failed: Any = e  # a grpc.Call too, which the types do not say
            return failed.code(), failed.details() or "", b""


def send_bytes(address: str, data: bytes, tls: TLS = None, timeout: float = 10.0) -> bytes:
    """Write bytes to a new connection and return what comes back until the peer closes or is silent for a second."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as plain:
        connection = _wrap(plain, host, tls) if tls else plain
        connection.sendall(data)
        answer = bytearray()
        try:
            while part := connection.recv(65536):
                answer += part
                connection.settimeout(1.0)
        except (TimeoutError, ConnectionError):
            pass
        return bytes(answer)


def _wrap(plain: socket.socket, host: str, tls: Mapping[str, str]) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=tls["ca"])
    if "cert" in tls:
        context.load_cert_chain(tls["cert"], tls["key"])
    return context.wrap_socket(plain, server_hostname=host)
