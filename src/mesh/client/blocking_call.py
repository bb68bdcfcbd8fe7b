"""One call made from a thread: what `grpc.Channel`'s calls offer (grpc.Call, grpc.Future, iteration), over the
asyncio call that does the work on the loop thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any, ClassVar

import grpc
from grpc import aio

from mesh.client.blocking_error import BlockingCallError, Metadatum, pairs
from mesh.client.ended import LOCALLY_CANCELLED, peek
from mesh.client.errors import CallError
from mesh.client.thread import LoopThread
from mesh.instance import AttemptRecord
from mesh.resilience.hops import CURRENT, Hop


class BlockingCall(grpc.Call, grpc.Future):  # type: ignore[type-arg]  # at run time grpc.Future takes no parameters
    """A call in flight. Its callbacks run on the loop thread and must not make blocking calls.

    As in grpc, a stream of responses that its reader has dropped is cancelled, unless somebody waits to be called back.
    """

    _call: Any = None
    _called_back: ClassVar[set[BlockingCall]] = set()

    def __init__(
        self, thread: LoopThread, make: Callable[[], Any], requests: Iterable[Any] | None, *, unary: bool
    ) -> None:
        """`make` starts the asyncio call on the loop; `requests` are written to it by a thread of their own."""
        thread.check()
        self._thread = thread
        self._make = make
        self._unary = unary
        self._response: Any = None
        self._error: Exception | None = None
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        # What this thread's incoming call hands on, its deadline above all, goes along: posting copies the context.
        thread.post(self._begin)
        if requests is not None:
            send = partial(copy_context().run, self._send, iter(requests))
            threading.Thread(target=send, name="mesh requests", daemon=True).start()

    @property
    def attempts(self) -> tuple[AttemptRecord, ...]:
        """The failed attempts so far."""
        return self._call.attempts if self._call is not None else ()

    def __del__(self) -> None:
        if self._call is not None and not self._ended.is_set():
            self._thread.post(self._call.cancel)

    # -- on the loop thread
    # ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        try:
            self._call = self._make()
        except Exception as e:
            self._error = e
            self._end()
            return
        self._begun.set()
        if self._unary:
            self._waiting = self._thread.loop.create_task(self._await_response())
        else:
            ended = weakref.WeakMethod(self._end)
            self._call.add_done_callback(lambda _: (end := ended()) and end())
        if (hop := CURRENT.get()) is not None:
            self._end_with(hop)

    async def _await_response(self) -> None:
        try:
            self._response = await self._call
        except CallError as e:
            self._error = BlockingCallError(e)
        except BaseException as e:
            self._error = (
                _cancelled(self._call) if self._call.cancelled() else RuntimeError(f"the client failed: {e!r}")
            )
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._ended.set()
            self._begun.set()
            callbacks, self._callbacks = self._callbacks, []
            self._called_back.discard(self)
        for callback in callbacks:
            callback()

    def _end_with(self, hop: Hop) -> None:
        """Be cancelled with the incoming call; a thread, unlike a task, is not. It holds the asyncio call and not this
        one, which may be dropped.
        """
        thread, call = self._thread, self._call

        def end() -> None:
            thread.post(call.cancel)

        hop.on_cancel(end)
        call.add_done_callback(lambda _: hop.forget(end))

    # -- on the caller's threads
    # ----------------------------------------------------------------------------------------

    def _send(self, requests: Iterator[Any]) -> None:
        self._begun.wait()
        try:
            for request in requests:
                self._thread.run(self._call.write(request))
            self._thread.run(self._call.done_writing())
        except Exception:
            # The call has ended, or the caller's iterator raised: either way nothing further is sent.
            self.cancel()

    def __iter__(self) -> BlockingCall:
        return self

    def __next__(self) -> Any:
        self._wait_begun()
        try:
            message = self._thread.run(self._call.read())
        except CallError as e:
            raise BlockingCallError(e) from None
        except BaseException:
            if not self._call.cancelled():
                raise
            raise _cancelled(self._call) from None
        if message is aio.EOF:
            raise StopIteration
        return message

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the response. Raises BlockingCallError, grpc.FutureTimeoutError, grpc.FutureCancelledError."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._response

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait for the end and return the error of the call, or None."""
        try:
            if not self._thread.wait(lambda: self._ended.wait(timeout)):
                raise grpc.FutureTimeoutError
        except KeyboardInterrupt:
            self.cancel()
            raise
        if self._error is None and not self._unary and peek(self._call.code()) is not grpc.StatusCode.OK:
            self._error = _error_of(self._call)
        if self._error is not None and self.cancelled():
            raise grpc.FutureCancelledError
        return self._error

    def traceback(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the traceback of the error, or None."""
        error = self.exception(timeout)
        return error.__traceback__ if error is not None else None

    def running(self) -> bool:
        """Whether the call has not ended."""
        return not self._ended.is_set()

    def is_active(self) -> bool:
        """Whether the call has not ended."""
        return not self._ended.is_set()

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._ended.is_set()

    def cancelled(self) -> bool:
        """Whether the call has ended because it was cancelled here."""
        return (
            self._call is not None and bool(self._call.cancelled()) and peek(self._call.details()) == LOCALLY_CANCELLED
        )

    def cancel(self) -> bool:
        """End the call as CANCELLED; False if it has ended already."""
        if self._ended.is_set():
            return False
        self._thread.post(lambda: self._call is not None and self._call.cancel())
        return True

    def time_remaining(self) -> float:
        """Seconds until the deadline, at least 0."""
        self._wait_begun()
        return float(self._call.time_remaining())

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call back when the call has ended; False, and no call, if it has."""
        with self._lock:
            if self._ended.is_set():
                return False
            self._callbacks.append(callback)
            self._called_back.add(self)
            return True

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Call back with this object when the call has ended, at once if it has."""
        if not self.add_callback(lambda: fn(self)):
            fn(self)

    def code(self) -> grpc.StatusCode:
        """Wait for the end and return its code."""
        return self._of_ended("code")  # type: ignore[no-any-return]  # the asyncio call is Any here

    def details(self) -> str:
        """Wait for the end and return its details."""
        return self._of_ended("details")  # type: ignore[no-any-return]  # as above

    def debug_error_string(self) -> str:
        """Wait for the end and return what gRPC's core says for debugging."""
        return self._of_ended("debug_error_string")  # type: ignore[no-any-return]  # as above

    def initial_metadata(self) -> tuple[Metadatum, ...]:
        """Wait for the first metadata of the answer."""
        self._wait_begun()
        return pairs(self._thread.run(self._call.initial_metadata()))

    def trailing_metadata(self) -> tuple[Metadatum, ...]:
        """Wait for the end and return the last metadata."""
        return pairs(self._of_ended("trailing_metadata"))

    def _of_ended(self, what: str) -> Any:
        self._thread.wait(self._ended.wait)
        self._wait_begun()
        return peek(getattr(self._call, what)())

    def _wait_begun(self) -> None:
        self._thread.check()
        self._thread.wait(self._begun.wait)
        if self._call is None:
            assert self._error is not None
            raise self._error


def _error_of(call: Any) -> BlockingCallError:
    code, details = peek(call.code()), peek(call.details())
    error = CallError(code, peek(call.initial_metadata()), peek(call.trailing_metadata()), details, "")
    error.attempts = call.attempts
    return BlockingCallError(error)


def _cancelled(call: Any) -> BlockingCallError:
    error = CallError(grpc.StatusCode.CANCELLED, aio.Metadata(), aio.Metadata(), LOCALLY_CANCELLED, "")
    error.attempts = call.attempts
    return BlockingCallError(error)


def response_of(call: BlockingCall) -> Any:
    """Wait for the response as a plain call does: a cancellation is an RpcError there, not
    grpc.FutureCancelledError.
    """
    try:
        return call.result()
    except grpc.FutureCancelledError:
        assert call._error is not None
        raise call._error from None
