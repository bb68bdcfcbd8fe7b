"""A TCP proxy on loopback that misbehaves on demand: cuts, refuses, swallows or delays. (The ideas are toxiproxy's.)"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Self

from support.ports import free_port


class Proxy:
    """Stands in front of "host:port" at `endpoint`.

    latency: seconds added to each direction.
    swallow: take everything and pass nothing on, as a black hole does.
    refuse: close new connections at once.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._port = free_port()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.latency = 0.0
        self.swallow = False
        self.refuse = False
        self.accepted = 0

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset every connection that is open."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuse:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._writers |= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on, each after its own delay: a slow path is no narrow one."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        passing = asyncio.create_task(self._pass_on(under_way, writer))
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    under_way.put_nowait((time.monotonic() + self.latency, data))
                under_way.put_nowait((time.monotonic() + self.latency, b""))
                await passing
        finally:
            passing.cancel()
            writer.transport.abort()
            self._writers.discard(writer)

    async def _pass_on(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await under_way.get()
                while self.swallow or time.monotonic() < due:
                    await asyncio.sleep(0.02 if self.swallow else max(0.0, due - time.monotonic()))
                if not data:
                    return
                writer.write(data)
                await writer.drain()
