"""One call as its caller sees it: what grpc.aio's call objects offer, and the unary-unary kind. How it gets its answer
is `mesh.client.attempts`; the kinds with streams are `mesh.client.streams`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import grpc
from grpc import aio

from mesh.client.attempts import Attempts, Ended
from mesh.client.ended import LOCALLY_CANCELLED
from mesh.client.entries import NOTHING, Entries
from mesh.client.roster import Slot

_CANCELLED = grpc.StatusCode.CANCELLED


class Call(Attempts, aio.Call):
    """What all calls have in common. Behaves as grpc.aio's own."""

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._code is not None

    def cancelled(self) -> bool:
        """Whether the call has ended as CANCELLED."""
        return self._code is _CANCELLED

    def cancel(self) -> bool:
        """End the call as CANCELLED; False if it has ended already."""
        if self._code is not None:
            return False
        self._cancelling = True
        if self._driver is not None:
            self._driver.cancel()
        if self._inner is not None and not self._inner.done():
            self._inner.cancel()
        if self._code is None:
            self._end_locally(_CANCELLED, LOCALLY_CANCELLED)
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back with this object when the call has ended, at once if it has."""
        if self._code is not None:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._deadline - self._method.monotonic())

    async def code(self) -> grpc.StatusCode:
        """Wait for the end and return its code."""
        await self._ended()
        assert self._code is not None
        return self._code

    async def details(self) -> str:
        """Wait for the end and return its details."""
        await self._ended()
        if self._error is not None:
            return self._error.details() or ""
        return str(await self._inner.details())

    async def initial_metadata(self) -> aio.Metadata:
        """Wait for the first metadata of the answer. Seeing it commits the call to the attempt that brought it."""
        while self._code is None:
            await self._attempt_begun()
            inner = self._inner
            if inner is None:
                break
            found = await inner.initial_metadata()
            if not inner.done():
                self._committed = True
                return found  # type: ignore[no-any-return]  # grpc's calls are Any here
            await self._attempt_begun(after=inner)
        if self._error is not None:
            return self._error.initial_metadata() or aio.Metadata()
        return await self._inner.initial_metadata()  # type: ignore[no-any-return]  # as above

    async def trailing_metadata(self) -> aio.Metadata:
        """Wait for the end and return the last metadata."""
        await self._ended()
        if self._error is not None:
            return self._error.trailing_metadata() or aio.Metadata()
        return await self._inner.trailing_metadata()  # type: ignore[no-any-return]  # as above

    async def debug_error_string(self) -> str:
        """Wait for the end and return what gRPC's core says for debugging."""
        await self._ended()
        return (self._error.debug_error_string() or "") if self._error is not None else ""

    async def wait_for_connection(self) -> None:
        """Wait until an attempt is under way on a connection; raise if the call fails before."""
        await self._attempt_begun()
        if self._error is not None:
            raise self._error

    def __repr__(self) -> str:
        state = self._code.name if self._code is not None else "driven" if self._driver is not None else "in flight"
        return f"<{type(self).__name__} {self._method.path}: {state}, {len(self.attempts)} failed attempts>"

    async def _ended(self) -> None:
        if self._code is not None:
            return
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.add_done_callback(lambda _: None if end.done() else end.set_result(None))
        await end


class UnaryUnaryCall(Call, aio.UnaryUnaryCall[Any, Any]):
    """A request, a response."""

    def _begin(self, slot: Slot, timeout: float, metadata: Any) -> Any:
        make = slot.calls.get(self._method) or self._method.on(slot)
        return make(
            self._payload,
            timeout=timeout,
            metadata=Entries(metadata) if metadata else NOTHING,
            credentials=self._credentials,
            compression=self._compression,
        )

    async def _next_attempt(self) -> Any:
        picked, now = await self._pick()
        inner = self._launch(picked, now)
        try:
            return await inner
        except aio.AioRpcError:
            pass
        except asyncio.CancelledError:
            self._check_cancelled()
        failure, self._failure = self._failure, None
        raise failure if failure is not None else Ended

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the response; raise CallError if the call failed."""
        if self._driver is None and self._inner is not None:
            try:
                return (yield from self._inner.__await__())
            except aio.AioRpcError:
                pass
            except asyncio.CancelledError:
                self._check_cancelled()
            except Exception as e:
                self._refused(e)
        if self._driver is not None:
            response = yield from self._driver
            if response is not aio.EOF:
                return response
        raise self._failed()
