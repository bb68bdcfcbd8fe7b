"""Abusive HTTP/2 and HTTP/1 peers at the edge: other callers hardly notice, and Envoy's memory stays bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.stack import Stack

from support.http1 import Client
from support.load import Outcome, Report

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.xdist_group("stack")]

SECONDS = 5.0
RATE = 100.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, RESET, PING, WINDOW = 4, 1, 3, 6, 8
END = 0x5  # of the headers and of the stream


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def get(path: str, authority: str) -> bytes:
    """Headers of a GET in HPACK, nothing indexed."""
    return b"\x82\x86" + b"".join(
        bytes([index, len(text)]) + text.encode() for index, text in ((0x04, path), (0x01, authority))
    )


class Attack:
    """Many connections that misbehave in one way, opened again whenever Envoy closes them."""

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
                drain = asyncio.create_task(self._swallow(reader))
                try:
                    await misbehave(writer)
                finally:
                    drain.cancel()
                    writer.close()
            await asyncio.sleep(0.05)

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while await reader.read(65536):
                pass

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
        """Ping and never read."""
        writer.write(PREFACE + frame(SETTINGS))
        for _ in range(500):
            writer.write(frame(PING, 0, 0, b"12345678") * 100)
            await writer.drain()
            await asyncio.sleep(0.01)

    async def settings_flood(self, writer: asyncio.StreamWriter) -> None:
        """Change settings all the time."""
        writer.write(PREFACE + frame(SETTINGS))
        for _ in range(500):
            writer.write(frame(SETTINGS) * 100)
            await writer.drain()
            await asyncio.sleep(0.01)

    async def zero_window(self, writer: asyncio.StreamWriter) -> None:
        """Ask for much and take nothing."""
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0"))
        ask = get("/v1/users?page_size=1000", self.address)
        for stream in range(1, 101, 2):
            writer.write(frame(HEADERS, END, stream, ask))
        await writer.drain()
        await asyncio.sleep(60)

    async def slow_headers(self, writer: asyncio.StreamWriter) -> None:
        """Send a request for a minute, byte by byte."""
        writer.write(b"GET /v1/users HTTP/1.1\r\nhost: x\r\nx-slow: ")
        for _ in range(600):
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.1)


ATTACKS = {"rapid_reset": 4, "ping_flood": 4, "settings_flood": 4, "zero_window": 10, "slow_headers": 200}


async def measure(address: str) -> Report:
    """Be another caller for some seconds."""
    client, calls = Client(address), list[Outcome]()
    begin = time.monotonic()

    async def one(due: float) -> None:
        status = (await client.ask("GET", "/v1/users/nobody")).status
        calls.append(Outcome(due, time.monotonic() - due, "get", "OK" if status == 404 else str(status), ""))

    async with asyncio.TaskGroup() as group:
        for number in range(int(SECONDS * RATE)):
            due = begin + number / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(due))
    await client.close()
    return Report("edge", calls)


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.parametrize("name", ATTACKS)
def test_other_callers_hardly_notice(name: str, stack: Stack) -> None:
    envoy = stack.process("envoy").pid

    async def story() -> tuple[Report, Report, int]:
        await measure(stack.edge)
        before = await measure(stack.edge)
        attack, held = Attack(stack.edge), memory(envoy)
        tasks = [asyncio.create_task(attack.connection(getattr(attack, name))) for _ in range(ATTACKS[name])]
        during = await measure(stack.edge)
        grown = memory(envoy) - held
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert attack.connections >= ATTACKS[name]
        return before, during, grown

    before, during, grown = asyncio.run(story())

    print(f"{name}: before {before}; during {during}; memory +{grown / 1e6:.0f} MB")
    assert not during.failed, during
    assert grown <= 100_000_000
    assert during.percentile(0.99) <= 2 * before.percentile(0.99)
