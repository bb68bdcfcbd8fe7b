"""The event loop behind every blocking channel of this process: one daemon thread, started with the first of them.

What belongs to the loop (rosters, breakers, budgets, counts) is not locked; the loop's thread owns it. Here threads
want to touch it as well, for calls that they make themselves (`mesh.client.sync`). So the loop owns a lock, `state`,
all the time but while it waits for news in its selector: `with thread.gate, thread.state:` is a moment in which the
loop stands still between two of its steps, and every machine is whole. The asyncio client knows nothing of it and pays
nothing.

`gate` makes it fair: a loop that is busy lets go of `state` for a microsecond only, and a thread that was woken for it
would come too late for ever. Whoever waits for `state` holds `gate`, and the loop has to pass it too.

A finalizer or a signal handler may make a call in the middle of another, in the moment in which its thread has both.
Such a call goes by the loop, and `wait` gives them away meanwhile. To the call that was interrupted it is
as if the loop had taken a step between two of its lines.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_FORKED = (
    "this channel was made before the process forked, and its connections stayed with the parent: "
    "call mesh.blocking.connect in the child"
)
_OWN_LOOP = "a callback of a blocking channel must not make a blocking call: it runs on the mesh's own loop"


class LoopThread:
    """Runs an event loop for threads that have none."""

    _shared: LoopThread | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.is_foreign = False
        """Whether the process has forked, and this is the child."""
        self.gate: Any = threading.RLock()
        """To be taken before `state`, and given back after it."""
        self.state: Any = threading.RLock()
        """What the loop owns is yours while you have this. Do nothing that waits."""
        self.loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop(_Selector(self.gate, self.state))
        self.asked = 0
        """Channels of the blocking kind that are being asked for their state; a count of `mesh.client.sync_twin`."""
        self._thread = threading.Thread(target=self._run, name="mesh loop", daemon=True)
        self._thread.start()
        self.ident = self._thread.ident

    def _run(self) -> None:
        with self.state:
            self.loop.run_forever()

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
        if threading.get_ident() == self.ident:
            raise RuntimeError(_OWN_LOOP)

    def wait(self, waiting: Callable[[], T]) -> T:
        """Wait, by calling `waiting`, for something that the loop does."""
        if not self.gate._is_owned():
            return waiting()
        with _given_away(self.state), _given_away(self.gate):  # taken again the other way round, as always
            return waiting()

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
            return self.wait(future.result)
        except BaseException:
            future.cancel()
            raise


def _forked() -> None:
    if LoopThread._shared is not None:
        LoopThread._shared.is_foreign = True


os.register_at_fork(after_in_child=_forked)


@contextmanager
def _given_away(lock: Any) -> Iterator[None]:
    # What threading.Condition does with a lock of this kind while it waits.
    if not lock._is_owned():
        yield
        return
    depth = lock._release_save()
    try:
        yield
    finally:
        lock._acquire_restore(depth)


class _Selector(selectors.DefaultSelector):
    """Lets threads at what the loop owns while the loop waits."""

    def __init__(self, gate: Any, state: Any) -> None:
        super().__init__()
        self._gate = gate
        self._state = state

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._state.release()
        try:
            return super().select(timeout)
        finally:
            with self._gate:
                self._state.acquire()
