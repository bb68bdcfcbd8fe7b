"""Callers of gRPC for the bench: HTTP/2 connections with one call at a time on each.

Written by hand (RFC 9113, RFC 7541), so that a call costs its caller as little as one of HTTP/1.1 in `http1`. A
channel of gRPC's own costs several times that, and the edge would be given fewer calls, and dearer ones.

Answers are looked into only so far that a call without a message, or one that was reset, fails.
"""

from __future__ import annotations

import asyncio
import struct
from typing import cast

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE, _LARGE = 4, 2**30
_POST, _HTTP = 0x83, 0x86  # in the static table: ":method: POST", ":scheme: http"


class Connection(asyncio.Protocol):
    """One connection, for calls of one method."""

    def __init__(self, path: str, authority: str) -> None:
        self._fields = ((0x44, b"", path), (0x41, b"", authority), (0x40, b"content-type", "application/grpc"))
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._stream = -1
        self._got = b""
        self._answered = False

    @classmethod
    async def open(cls, address: str, path: str) -> Connection:
        """Connect."""
        host, _, port = address.rpartition(":")
        made = await asyncio.get_running_loop().create_connection(lambda: cls(path, address), host, int(port))
        return made[1]

    async def ask(self, message: bytes) -> None:
        """Make a call with a message, and wait for the end of its answer."""
        assert self._transport is not None
        assert self._waiting is None
        self._waiting = asyncio.get_running_loop().create_future()
        self._answered = False
        self._stream += 2
        body = b"\0" + struct.pack(">I", len(message)) + message
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, self._stream, self._head()) + _frame(_DATA, _END_STREAM, self._stream, body)
        )
        await self._waiting

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def _head(self) -> bytes:
        """Return the header block: in full the first time, from the peer's table afterwards, as gRPC's clients do."""
        start = bytes([_POST, _HTTP])
        count = len(self._fields) + 1
        if self._stream > 1:
            # The newest entry of the dynamic table is number 62.
            return start + bytes(0x80 | 61 + number for number in range(count, 0, -1))
        texts = [bytes([kind]) + (_text(name) if name else b"") + _text(v.encode()) for kind, name, v in self._fields]
        return start + b"".join(texts) + bytes([0x40]) + _text(b"te") + _text(b"trailers")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGE)
        window = struct.pack(">I", _LARGE)
        self._transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, window))

    def data_received(self, data: bytes) -> None:
        """Take frames."""
        got = self._got + data
        at = 0
        while len(got) >= at + 9:
            size = int.from_bytes(got[at : at + 3], "big")
            if len(got) < at + 9 + size:
                break
            kind, flags = got[at + 3], got[at + 4]
            self._take(kind, flags, got[at + 9 : at + 9 + size])
            at += 9 + size
        self._got = got[at:]

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what waits."""
        self._end(ConnectionError("the connection was closed"))

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        assert self._transport is not None
        if kind == _DATA:
            self._answered = self._answered or len(payload) > 5
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self._end(None if self._answered else RuntimeError("answered without a message"))
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in (_RESET, _GOAWAY):
            self._end(RuntimeError(f"ended by frame {kind}: {payload!r}"))

    def _end(self, error: Exception | None) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(text: bytes) -> bytes:
    assert len(text) < 127  # longer ones need another form
    return bytes([len(text)]) + text
