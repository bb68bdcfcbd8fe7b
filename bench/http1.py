"""Callers of HTTP/1.1 for the bench: connections that stay open with one request on its way on each, and as little work
per request as Python allows, so that the machine's CPU is left to what is measured.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


def request(method: str, path: str, host: str, body: bytes = b"") -> bytes:
    """Return a request's bytes."""
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\n"
    if body:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class Connection(asyncio.Protocol):
    """One connection. Anything but an answer of 200 with a length fails the call."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[bytes] | None = None
        self._got = b""

    @classmethod
    async def open(cls, address: str) -> Connection:
        """Connect."""
        host, _, port = address.rpartition(":")
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        return connection

    async def ask(self, message: bytes) -> bytes:
        """Send a request; return the answer's body."""
        assert self._transport is not None
        assert self._waiting is None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await self._waiting

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        got = self._got = self._got + data
        end = got.find(b"\r\n\r\n")
        if end < 0 or self._waiting is None:
            return
        found = _LENGTH.search(got, 0, end + 4)
        if not got.startswith(b"HTTP/1.1 200 ") or found is None:
            self._end(RuntimeError(f"answered {got[:400]!r}"))
        elif len(got) >= end + 4 + int(found.group(1)):
            self._end(got[end + 4 :])

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what waits."""
        if self._waiting is not None:
            self._end(ConnectionError("the connection was closed"))

    def _end(self, result: bytes | Exception) -> None:
        waiting, self._waiting, self._got = self._waiting, None, b""
        if waiting is None or waiting.done():
            return
        if isinstance(result, Exception):
            waiting.set_exception(result)
        else:
            waiting.set_result(result)
