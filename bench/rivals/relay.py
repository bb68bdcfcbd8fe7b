"""The road to etcd, as something that can break: a relay on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self

from support.proxy import Proxy


class Relay:
    """Stands before an address; while its road is closed, connections are reset and new ones refused."""

    def __init__(self, target: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._proxy = Proxy(target)

    @property
    def endpoint(self) -> str:
        """Where clients go."""
        return self._proxy.endpoint

    def close_road(self) -> None:
        """Break every connection and refuse new ones."""
        self._proxy.refuse = True
        self._loop.call_soon_threadsafe(self._proxy.cut)

    def open_road(self) -> None:
        """Let everything pass again."""
        self._proxy.refuse = False

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._proxy.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
