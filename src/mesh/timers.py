"""Timers that an event loop does not feel while they are pending.

A loop of asyncio's that waits for a time does more in each of its turns: it looks at the clock, at its timers, and
computes how long to wait. That is 4 % of a message of a stream (`python -m bench.limits timer`) and 1 % of a small call
that is served, for as long as any timer is set, however far off. The mesh always has some: deadlines of calls, signs of
life to etcd, a look at the load. So all of these ring a file descriptor, which a loop waits for anyway: one timerfd for
all timers of a loop (`mesh.timerfd`). Where there is none, as on macOS, they are asyncio's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from itertools import count
from math import ceil
from typing import Protocol
from weakref import WeakKeyDictionary

_NEVER = float("inf")
# Seconds: what is due within one rings together, as it does in asyncio, whose polls wait for whole milliseconds.
_GRAIN = 0.001
# Timers that were cancelled stay until their time, as long as they are few.
_FEW = 100


class Timer(Protocol):
    """Something that is to happen."""

    def cancel(self) -> None:
        """See to it that it does not. Harmless if it has happened."""
        ...


def call_later(seconds: float, callback: Callable[[], object]) -> Timer:
    """Call back in so many seconds, at the earliest, in the running loop and in an empty context. What the callback
    raises goes to the loop's exception handler.
    """
    loop = asyncio.get_running_loop()
    if loop not in _bells:
        _bells[loop] = _bell(loop)
    bell = _bells[loop]
    if bell is None:
        return loop.call_later(max(seconds, 0.0), callback, context=Context())
    return bell.add(loop.time() + seconds, callback)


async def sleep(seconds: float) -> None:
    """Wait at least so long."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    timer = call_later(seconds, end)
    try:
        await over
    finally:
        timer.cancel()


@contextlib.asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """Cancel what is within after so long, and raise TimeoutError: `asyncio.timeout` with a timer of ours."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = call_later(seconds, lambda: limit.reschedule(loop.time()))
        try:
            yield
        finally:
            timer.cancel()


class _Entry:
    __slots__ = ("_bell", "callback")

    def __init__(self, bell: _Bell, callback: Callable[[], object]) -> None:
        self._bell = bell
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._bell.cancelled += 1


class _Bell:
    """The timers of one loop, touched in it alone. `_rings` is when the descriptor does, less than a grain after the
    first timer; it may ring for nothing, where that was cancelled.
    """

    def __init__(self, fd: int, ring_in: Callable[[int, float], None]) -> None:
        self._fd = fd
        self._ring_in = ring_in
        self._rings = _NEVER
        self._heap: list[tuple[float, int, _Entry]] = []
        self._number = count()
        self.cancelled = 0

    def __repr__(self) -> str:
        return f"_Bell({len(self._heap) - self.cancelled} timers)"

    def __del__(self) -> None:
        os.close(self._fd)

    def add(self, when: float, callback: Callable[[], object]) -> Timer:
        if self.cancelled > _FEW and self.cancelled * 2 > len(self._heap):
            self._heap = [item for item in self._heap if item[2].callback is not None]
            heapq.heapify(self._heap)
            self.cancelled = 0
        entry = _Entry(self, callback)
        heapq.heappush(self._heap, (when, next(self._number), entry))
        self._set(when)
        return entry

    def ring(self) -> None:
        """Do what is due."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        loop = asyncio.get_running_loop()
        self._rings, now = _NEVER, loop.time()
        due = []
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].callback is None):
            due.append(heapq.heappop(self._heap)[2])
        if self._heap:
            self._set(self._heap[0][0])
        for entry in due:
            callback, entry.callback = entry.callback, None
            if callback is None:  # perhaps by one before it
                self.cancelled -= 1
                continue
            try:
                callback()
            except Exception as e:  # as the loop does with its own
                loop.call_exception_handler({"message": f"Exception in timer {callback!r}", "exception": e})

    def _set(self, when: float) -> None:
        rings = ceil(when / _GRAIN) * _GRAIN if when < _NEVER else _NEVER
        if rings < self._rings:
            self._rings = rings
            self._ring_in(self._fd, rings - asyncio.get_running_loop().time())


def _bell(loop: asyncio.AbstractEventLoop) -> _Bell | None:
    """Return the bell of a loop, None where there can be none."""
    # When the first timer is set: it loads ctypes, a fiftieth of the way to a process's first call.
    from mesh.timerfd import create, ring_in

    fd = create()
    if fd is None:
        return None
    bell = _Bell(fd, ring_in)
    try:
        Context().run(loop.add_reader, fd, bell.ring)
    except NotImplementedError:
        return None
    return bell


_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell | None] = WeakKeyDictionary()
