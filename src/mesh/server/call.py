"""One call being answered: the context its handler sees, its deadline, and its account in metrics, traces and logs.

`ServedCall` begins before the request is parsed and is closed exactly once, whatever happens. It is written for speed:
it stands in the way of every call, and all that it does costs a few per cent of what grpc.aio does for the same call.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any, NoReturn

import grpc

from mesh.clock import Clock
from mesh.errors import Refusal
from mesh.server.errors import BROKEN, LEAVING, NO_TIME_LEFT, TOO_SLOW, UNREADABLE, trailer_of
from mesh.telemetry import metrics, tracing

_log = logging.getLogger("mesh.server")

# Kept of the caller's deadline to say what went wrong (letsencrypt/boulder does the same), but never more than a tenth
# of it: a caller with 30 ms left still gets 27 of them.
ANSWER_RESERVE = 0.020
_RESERVE_SHARE = 0.1

# Less than this is no time to do anything in.
_HARDLY = 0.0005

# Longest deadline granted to a caller; a contract that says more wins. A caller that writes ten years means "I did not
# think about it", and its call would outlive every restart.
LONGEST = 3600.0

_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class Unreadable(Exception):
    """The bytes of a request are no message of the method."""


class ServedMethod:
    """What all calls of one method share: its names, its time and its metrics. Labels come from contracts only."""

    __slots__ = ("_counters", "calls", "clock", "in_flight", "longest", "name", "seconds", "service", "timeout")

    def __init__(self, service: str, name: str, timeout: float, clock: Clock, calls: set[ServedCall]) -> None:
        self.service = service
        self.name = name
        self.timeout = timeout
        self.longest = max(LONGEST, timeout)
        self.clock = clock
        self.calls = calls
        self.in_flight = metrics.SERVER_IN_FLIGHT.labels(service)
        self.seconds = metrics.SERVER_CALL_SECONDS.labels(service, name)
        self._counters: dict[str, Any] = {}

    def count(self, code: str) -> None:
        """Count an answer."""
        counter = self._counters.get(code)
        if counter is None:
            counter = self._counters[code] = metrics.SERVER_CALLS.labels(self.service, self.name, code)
        counter.inc()


class ServedCall:
    """A call being answered. Handlers get it as their context: it is grpc's, with the deadline that really holds."""

    __slots__ = (
        "_aborted",
        "_context",
        "_cut",
        "_deadline",
        "_scope",
        "_span",
        "_started",
        "_task",
        "_timer",
        "method",
    )

    def __init__(self, method: ServedMethod, context: Any) -> None:
        self.method = method
        self._context = context
        self._cut: Refusal | None = None
        self._aborted = ""
        self._scope: tracing.ServerSpan | None = None
        self._task = asyncio.current_task()
        self._started = now = method.clock.monotonic()
        left = context.time_remaining()
        if left is None:
            granted = method.timeout
        else:
            granted = min(left - min(ANSWER_RESERVE, left * _RESERVE_SHARE), method.longest)
        self._deadline = now + granted
        self._timer = asyncio.get_running_loop().call_later(granted, self.cut, TOO_SLOW)
        if left is not None and left < _HARDLY:
            self._cut = NO_TIME_LEFT
        method.in_flight.inc()
        method.calls.add(self)
        if tracing.enabled():
            self._scope = tracing.start_server(method.service, method.name, context.invocation_metadata())
            self._span = self._scope.__enter__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def time_remaining(self) -> float:
        """Return the seconds until the handler is cancelled: the caller's deadline, or the contract's without one."""
        return max(self._deadline - self.method.clock.monotonic(), 0.0)

    async def abort(self, code: Any, details: str = "", trailing_metadata: tuple[Any, ...] = ()) -> NoReturn:
        """End the call with an error, as grpc's own does."""
        self._aborted = _NAMES.get(code, "UNKNOWN") if isinstance(code, int) else str(code.name)
        await self._context.abort(code, details, trailing_metadata)
        raise AssertionError("abort always raises")

    async def abort_with_status(self, status: Any) -> NoReturn:
        """End the call with a google.rpc.Status, as grpc's own does."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def check(self) -> None:
        """Refuse a call that cannot be answered in time, before anything is done for it."""
        if self._cut is not None:
            raise replace(self._cut)  # a copy: an exception raised again and again keeps every stack it went through

    def cut(self, why: Refusal) -> None:
        """Cancel the handler and answer with `why` instead."""
        if self._cut is None and self._task is not None:
            self._cut = why
            self._task.cancel()

    def is_failed(self) -> bool:
        """Whether the handler set an error code; its response then does not count."""
        return bool(self._context.code())

    def finish(self) -> None:
        """Close the account of a call whose handler returned."""
        code = self._context.code()
        self._close(_NAMES.get(code, "UNKNOWN") if code else "OK")

    async def fail(self, error: BaseException) -> NoReturn:
        """Close the account of a call whose handler raised, and answer the caller; always raises."""
        if self._cut is not None:
            refusal = self._cut
            if self._task is not None and isinstance(error, asyncio.CancelledError):
                self._task.uncancel()
        elif isinstance(error, Refusal):
            refusal = error
        elif isinstance(error, Unreadable):
            refusal = UNREADABLE
        elif isinstance(error, grpc.aio.AbortError | asyncio.CancelledError) or not isinstance(error, Exception):
            # The handler has answered by itself; or the caller went away, or the process goes.
            self._close(self._aborted or "CANCELLED")
            raise error
        else:
            refusal = BROKEN
            self._log(error)
        self._close(refusal.code.name)
        await self._context.abort(refusal.code, refusal.message, trailer_of(refusal))
        raise AssertionError("abort always raises")

    def _log(self, error: Exception) -> None:
        service, name = self.method.service, self.method.name
        about = {"event.action": "handler-failed", "service.name": service}
        _log.error("%s/%s failed unexpectedly", service, name, exc_info=error, extra=about)

    def _close(self, code: str) -> None:
        method = self.method
        self._timer.cancel()
        method.calls.discard(self)
        method.in_flight.dec()
        method.seconds.observe(method.clock.monotonic() - self._started)
        method.count(code)
        if self._scope is not None:
            tracing.end(self._span, code)
            self._scope.__exit__(None, None, None)


def leave(calls: set[ServedCall], longer_than: float = 0.0) -> int:
    """Cut the calls whose contract lets them run longer than so many seconds; return how many."""
    chosen = [call for call in calls if call.method.timeout > longer_than]
    for call in chosen:
        call.cut(LEAVING)
    return len(chosen)
