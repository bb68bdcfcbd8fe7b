"""A lean HTTP/1.1 client on asyncio: connections kept alive, one request at a time on each. Just what the tests need of
a browser or curl, and cheap enough to make hundreds of calls a second without being what is measured.

As every such client does, it sends a request once more if a *reused* connection turns out to have been closed by the
server before a single byte of the answer came; nothing else is ever repeated.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)


class _Stale(Exception):
    """The connection was closed before any byte of an answer."""


@dataclass
class Client:
    """Talks to one host:port, in plain text or with the TLS files "ca", "cert" and "key"."""

    address: str
    tls: Mapping[str, str] | None = None
    reconnects: int = 0
    _idle: list[_Connection] = field(default_factory=list)

    async def ask(self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request and return the answer, whatever its status; `body` that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {target} HTTP/1.1", f"host: {self.address}", f"content-length: {len(data)}"]
        if data:
            lines.append("content-type: application/json")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        request = "\r\n".join([*lines, "", ""]).encode() + data
        while self._idle:
            try:
                return await self._exchange(self._idle.pop(), request)
            except _Stale:
                self.reconnects += 1
        try:
            return await self._exchange(await self._connect(), request)
        except _Stale as e:
            raise ConnectionError("closed before the answer") from e

    async def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[1].close()

    async def _connect(self) -> _Connection:
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port), ssl=self._context() if self.tls else None)

    def _context(self) -> ssl.SSLContext:
        assert self.tls is not None
        context = ssl.create_default_context(cafile=self.tls["ca"])
        if "cert" in self.tls:
            context.load_cert_chain(self.tls["cert"], self.tls["key"])
        return context

    async def _exchange(self, connection: _Connection, request: bytes) -> Answer:
        reader, writer = connection
        try:
            first = await self._send(reader, writer, request)
            answer = await self._read(reader, first)
        except BaseException:
            writer.close()
            raise
        if answer.headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append(connection)
        return answer

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
        try:
            writer.write(request)
            first = await reader.readline()
        except ConnectionError as e:
            raise _Stale from e
        if not first:
            raise _Stale
        return first

    async def _read(self, reader: asyncio.StreamReader, first: bytes) -> Answer:
        status = int(first.split()[1])
        headers: dict[str, str] = {}
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Answer(status, headers, await self._chunks(reader))
        return Answer(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = bytearray()
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return bytes(body)
