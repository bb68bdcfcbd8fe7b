"""One attempt that a thread makes, and waits for, itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from mesh.client.connection import Connection
from mesh.client.ended import LOCALLY_CANCELLED
from mesh.client.sync_twin import Twin

if TYPE_CHECKING:
    from mesh.client.method import Method

_OK = grpc.StatusCode.OK
_CANCELLED = grpc.StatusCode.CANCELLED


class ThreadAttempt:
    """To the course of a call (`mesh.client.attempts`) it is one of grpc's asyncio calls: callbacks hear of its end,
    and then it tells how it ended.

    Everything here runs under the loop's lock, except `run`, which is the wait, and `take`.
    """

    __slots__ = (
        "_arguments", "_callbacks", "_cancellable", "_cancelled", "_code", "_make", "_twin", "call", "connection",
    )  # fmt: skip

    def __init__(self, connection: Connection, twin: Twin) -> None:
        self.connection = connection
        self.call: Any = None
        """grpc's own, ended, where there is more to tell than OK."""
        self._twin = twin
        self._code = _CANCELLED
        """Until more is known: its thread was interrupted."""
        self._callbacks: list[Callable[[ThreadAttempt], object]] = []

    def prepare(self, method: Method, arguments: tuple[Any, ...], *, cancellable: bool) -> None:
        """Have `run` make it, with the arguments of grpc's own calls. `cancellable`: by another thread, too. That costs
        another thread of grpc's its share, so only those that may need it are.
        """
        self._make = self._twin.on(method)
        self._arguments = arguments
        self._cancellable = cancellable
        self._cancelled = False
        self._twin.in_flight += 1

    def run(self, *, telling: bool) -> Any:
        """Make it, and return the response, or None if it failed. `telling`: its metadata will be asked for."""
        try:
            if self._cancellable:
                response = self._wait()
            elif telling:
                response, self.call = self._make.with_call(*self._arguments)
            else:
                response = self._make(*self._arguments)
        except Exception as e:
            if not self.take(e):
                raise
            return None
        self._code = _OK
        return response

    def take(self, error: BaseException) -> bool:
        """Be ended by this; False for what is no end of an attempt."""
        if isinstance(error, grpc.RpcError):
            self.call = error
            self._code = error.code()
            return True
        if isinstance(error, grpc.FutureCancelledError):
            self.call = None  # it would wait for its end before it told anything
            return True
        # The channel was closed before the attempt had begun.
        return isinstance(error, ValueError) and self._twin.is_closed

    def _wait(self) -> Any:
        self.call = future = self._make.future(*self._arguments)
        if self._cancelled:
            future.cancel()
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            self.call = None
            raise

    def finish(self) -> None:
        """Tell everybody that it has ended. May be called twice."""
        callbacks, self._callbacks = self._callbacks, []
        if not callbacks:
            return
        assert self.connection.twins is not None
        self.connection.twins.left(self._twin)
        for callback in callbacks:
            callback(self)

    def doubt(self) -> None:
        """Have its connection asked whether it stands."""
        assert self.connection.twins is not None
        self.connection.twins.doubt(self._twin)

    def cancel(self) -> None:
        """End it, if it is cancellable and under way."""
        self._cancelled = True
        if self.call is not None:
            self.call.cancel()

    def done(self) -> bool:
        """Whether it has finished."""
        return not self._callbacks

    def add_done_callback(self, callback: Callable[[ThreadAttempt], object]) -> None:
        """Call back when it has finished."""
        self._callbacks.append(callback)

    # -- after the end, as grpc.aio's calls tell it

    async def code(self) -> grpc.StatusCode:
        """How it ended."""
        return self._code

    async def details(self) -> str:
        """In words."""
        # Channels of the two kinds have their own words for what was cut.
        if self.call is None or (self._code is _CANCELLED and self._twin.is_closed):
            return LOCALLY_CANCELLED
        return self.call.details() or ""

    async def debug_error_string(self) -> str:
        """In gRPC's core's words."""
        return (self.call.debug_error_string() or "") if self.call is not None else ""

    async def initial_metadata(self) -> aio.Metadata:
        """The first metadata of the answer."""
        return _metadata(self.call.initial_metadata() if self.call is not None else None)

    async def trailing_metadata(self) -> aio.Metadata:
        """The last metadata of the answer."""
        return _metadata(self.call.trailing_metadata() if self.call is not None else None)


def _metadata(pairs: Any) -> aio.Metadata:
    return aio.Metadata(*((key, value) for key, value in pairs or ()))
