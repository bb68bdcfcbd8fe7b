"""A quiet edge for tests that only ask: a tiny UserService in this process, a hand-fed control plane, a real Envoy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from support.front import Front


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """An Envoy with the users.v1 contract, and everything behind it on a loop of its own."""
    folder: Path = tmp_path_factory.mktemp("front")
    started: Future[Front] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def story() -> None:
        try:
            async with Front(folder) as front:
                started.set_result(front)
                await stop.wait()
        except BaseException as e:
            if not started.done():
                started.set_exception(e)
            raise

    thread = threading.Thread(target=lambda: loop.run_until_complete(story()))
    thread.start()
    try:
        yield started.result(60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
