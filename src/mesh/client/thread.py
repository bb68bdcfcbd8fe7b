"""The event loop behind every blocking channel of this process: one daemon thread, started with the first of them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_FORKED = (
    "this channel was made before the process forked, and its connections stayed with the parent: "
    "call mesh.blocking.connect in the child"
)


class LoopThread:
    """Runs an event loop for threads that have none."""

    _shared: LoopThread | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="mesh loop", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> LoopThread:
        """Return this process's thread. A forked child gets one of its own."""
        with cls._lock:
            if cls._shared is None or cls._shared._pid != os.getpid():
                cls._shared = cls()
            return cls._shared

    def check(self) -> None:
        """Raise RuntimeError in a forked child, and in the loop's own thread, which must not wait for itself."""
        if self._pid != os.getpid():
            raise RuntimeError(_FORKED)
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a callback of a blocking channel must not make a blocking call: it runs on the mesh's own loop"
            )

    def post(self, work: Callable[[], object]) -> None:
        """Have something done on the loop, soon."""
        self.loop.call_soon_threadsafe(work)

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine on the loop. Interrupted (Ctrl-C), it is cancelled."""
        future = self.begin(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
