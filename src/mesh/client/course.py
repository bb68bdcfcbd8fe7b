"""Where a call is: its present attempt, its end, and those who wait for news of either. Its attempts are `attempts`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from mesh.client.errors import CallError, tell
from mesh.client.method import Method
from mesh.instance import AttemptRecord
from mesh.telemetry import tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_OK = grpc.StatusCode.OK
_CANCELLED = grpc.StatusCode.CANCELLED


class Course:
    """The course of one call."""

    # Defaults live on the class: a call that succeeds at once sets only what it needs, and what it asks for most.
    _method: Method
    _started: float
    """When the call began."""
    _inner: Any = None
    _running: Any = None
    """The present attempt until its result was taken."""
    _code: grpc.StatusCode | None = None
    _error: CallError | None = None
    _callbacks: list[Callable[[Any], None]] | None = None
    _movement: asyncio.Future[None] | None = None
    _cancelling = False
    _span: Span | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    """The attempts that failed, or were given up for a faster one, in order."""

    def _end(self, code: grpc.StatusCode, now: float) -> None:
        self._code = code
        method = self._method
        if code is _OK:
            method.succeeded(now - self._started)
            pool = method.pool
            if now >= pool.due:
                pool.take_stock(now)
        else:
            method.calls(code.name).inc()
            method.seconds.observe(now - self._started)
        if self._span is not None:
            tracing.end(self._span, code.name)
        if self._movement is not None:
            self._moved()
        callbacks = self._callbacks
        if callbacks is not None:
            self._callbacks = None
            for callback in callbacks:
                callback(self)

    def _end_locally(self, code: grpc.StatusCode, details: str) -> None:
        """End the call without a server's word."""
        text = tell(code, details, self.attempts, ())
        self._error = CallError(code, aio.Metadata(), aio.Metadata(), text, details)
        self._error.attempts = self.attempts
        self._end(code, self._method.monotonic())

    def _check_cancelled(self) -> None:
        """Raise again what awaiting an attempt raised, unless it was only the attempt that was cancelled, by the
        pool.
        """
        task = asyncio.current_task()
        if self._code is _CANCELLED or (task is not None and task.cancelling()):
            self._cancelling = True
            raise  # called from except clauses only

    def _refused(self, error: Exception) -> None:
        """End the call where grpc.aio raised what is no RpcError (ExecuteBatchError and the like): no status will
        come.
        """
        if self._code is None:
            self._end_locally(grpc.StatusCode.INTERNAL, f"gRPC refused the call: {type(error).__name__}: {error}")
        if self._inner is not None:
            self._inner.cancel()

    def _failed(self) -> BaseException:
        """Return what an awaiting caller is to be raised: as in grpc.aio, its own cancellation is no error of the
        call.
        """
        if self._code is _CANCELLED and self._cancelling:
            return asyncio.CancelledError()
        assert self._error is not None
        return self._error

    async def _attempt_begun(self, after: Any = None) -> None:
        """Wait for an attempt other than `after`, or for the end."""
        while self._inner is after and self._code is None:
            await self._move()

    async def _attempt_over(self, inner: Any) -> None:
        """Wait until the result of this attempt was taken."""
        while self._running is inner:
            await self._move()

    async def _move(self) -> None:
        """Wait until an attempt began or was over, or the call ended."""
        if self._movement is None:
            self._movement = asyncio.get_running_loop().create_future()
        # Shielded: several may wait for the same movement.
        await asyncio.shield(self._movement)

    def _moved(self) -> None:
        movement, self._movement = self._movement, None
        if movement is not None and not movement.done():
            movement.set_result(None)
