"""`mesh.serve`: a whole process around a server. Logs, metrics, traces, signals; ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from mesh.errors import MeshError
from mesh.server.server import Server
from mesh.settings import Settings
from mesh.store import Store
from mesh.telemetry import logs, pages, tracing
from mesh.wallclock import CLOCK

_log = logging.getLogger("mesh.server")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Beyond `drain`. A handler that swallows its cancellation, or holds the loop, must not keep a process that is told to
# end; the lease ends what is left of it in the store.
_LAST_MOMENT = 0.8
# Two signals closer than this are one: `timeout` and shells send theirs to the process and to its group.
_SAME_SIGNAL = 0.2
_ENDED_BY_FORCE = 70  # EX_SOFTWARE of sysexits.h


async def serve(*servicers: object, settings: Settings | None = None, store: Store | None = None) -> None:
    """Serve servicers until SIGTERM or SIGINT, then leave in order: at most `drain` seconds and one more.

    A second signal leaves at once. What cannot start is told in one sentence in the log and ends the process with code
    2. Sets up the process's logs, metrics page and traces; a program that has its own uses `mesh.Server`.
    """
    try:
        settings = settings if settings is not None else Settings.from_env()
        server = Server(*servicers, settings=settings, store=store)
        name = server.services[0]
        logs.configure(settings.log_level, name, server.instance_id, service_version=settings.version)
        tracing.configure(name, settings.version, server.instance_id)
        with _page(settings.metrics), _told(settings.drain) as told:
            await server.start()
            await _until_left(server, told)
            told.finished(server.unfinished)
    except MeshError as e:
        if not logging.getLogger().handlers:  # the settings themselves were wrong
            logs.configure()
        _log.critical("cannot start: %s", e, extra={"event.action": "start-failed"})
        raise SystemExit(2) from None


@contextlib.contextmanager
def _page(address: str) -> Iterator[None]:
    """Serve the metrics page for as long as it lasts, if there is to be one."""
    if not address:
        yield
        return
    with contextlib.closing(pages.serve_metrics(address)):
        yield


async def _until_left(server: Server, told: _Told) -> None:
    try:
        await told.first.wait()
        leaving = asyncio.ensure_future(server.leave())
        again = asyncio.ensure_future(told.second.wait())
        await asyncio.wait({leaving, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        await server.leave(at_once=told.second.is_set())
    except asyncio.CancelledError:
        await server.leave()
        raise


class _Told:
    """What signals have told this process. Signals come in the main thread, between any two of its steps."""

    def __init__(self, loop: asyncio.AbstractEventLoop, drain: float) -> None:
        self._loop = loop
        self._drain = drain
        self._force: threading.Timer | None = None
        self._since = 0.0
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal; begin to count the time that is left."""
        if self._force is None:
            self._force = threading.Timer(self._drain + _LAST_MOMENT, self._end_by_force)
            self._force.daemon = True
            self._force.start()
            self._since = CLOCK.monotonic()
            self._loop.call_soon_threadsafe(self.first.set)
        elif CLOCK.monotonic() - self._since > _SAME_SIGNAL:
            self._loop.call_soon_threadsafe(self.second.set)

    def finished(self, unfinished: int) -> None:
        """Stop counting, unless handlers are left that keep the loop from closing."""
        if self._force is not None and not unfinished:
            self._force.cancel()

    @staticmethod
    def _end_by_force() -> None:
        _log.error("ended by force: a handler did not end", extra={"event.action": "ended-by-force"})
        os._exit(_ENDED_BY_FORCE)


@contextlib.contextmanager
def _told(drain: float) -> Iterator[_Told]:
    """Take the signals for as long as it lasts. In a thread other than the main one there are none to take."""
    told = _Told(asyncio.get_running_loop(), drain)
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = {number: signal.signal(number, told.on_signal) for number in _SIGNALS}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
