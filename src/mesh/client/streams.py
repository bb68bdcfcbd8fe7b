"""The three kinds of calls with a stream. An attempt may be replaced by another until the caller has seen something
of the answer; from then on the call is committed, and what breaks is told.

Reading and writing go to the present attempt. Where that one failed and the call goes on, they wait for the next: the
driver makes it and plays the requests again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

from grpc import aio

from mesh.client.attempts import Ended
from mesh.client.call import Call
from mesh.client.roster import Slot
from mesh.client.tape import Tape

_MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."
_FINISHED = "RPC already finished."
_HALF_CLOSED = 'RPC is half closed after calling "done_writing".'


class _Stream(Call):
    """The driver only starts attempts; their end is heard of by `_attempt_done`, which may drive again."""

    async def _run_driver(self) -> Any:
        try:
            return await super()._run_driver()
        finally:
            self._driver = None

    async def _next_attempt(self) -> Any:
        picked, now = await self._pick()
        await self._replay(self._launch(picked, now))
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self._error is not None:
            raise Ended

    async def _replay(self, inner: Any) -> None:
        """Give a new attempt the requests that those before it had."""

    async def _live(self) -> Any:
        """Return the attempt to read from or write to; raise if the call has failed."""
        # Awaited as it is: whoever is cancelled while reading cancels the call, as in grpc.aio.
        while self._driver is not None and self._code is None:
            await self._driver
        if self._error is not None:
            raise self._failed()
        return self._inner

    def _has_left(self, inner: Any) -> bool:
        """Whether the call goes on without this attempt."""
        return self._code is None and (self._driver is not None or self._inner is not inner)


class _Reading(_Stream):
    """A stream of responses."""

    _messages: AsyncIterator[Any] | None = None
    _iterating: bool | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate over the responses; raise CallError if the call failed."""
        self._read_by(iterating=True)
        if self._messages is None:
            self._messages = self._iterate()
        return self._messages

    async def read(self) -> Any:
        """Return the next response, or grpc.aio.EOF after the last one; raise CallError if the call failed."""
        self._read_by(iterating=False)
        return await self._read()

    def _read_by(self, *, iterating: bool) -> None:
        if self._iterating not in (None, iterating):
            raise aio.UsageError(_MIXED)
        self._iterating = iterating

    async def _iterate(self) -> AsyncIterator[Any]:
        while (message := await self._read()) is not aio.EOF:
            yield message

    async def _read(self) -> Any:
        while True:
            inner = await self._live()
            try:
                message = await inner.read()
            except aio.AioRpcError:
                await self._attempt_over(inner)
                if self._has_left(inner):
                    continue
                raise self._failed() from None
            except asyncio.CancelledError:
                self._check_cancelled()
                continue
            if not self._committed:
                self._commit()
            return message

    def _commit(self) -> None:
        self._committed = True


class _Writing(_Stream):
    """A stream of requests."""

    _tape: Tape
    _closed_writing = False

    def _begin(self, slot: Slot, timeout: float, metadata: Any) -> Any:
        if "_tape" not in self.__dict__:
            self._tape = Tape(self._request, self._method.serialize, self._commit)
        requests = self._tape.play() if self._tape.is_pulled else None
        return self._method.on(slot)(
            requests,
            timeout=timeout,
            metadata=metadata,
            credentials=self._credentials,
            compression=self._compression,
        )

    def _commit(self) -> None:
        self._committed = True
        self._tape.forget()

    async def _replay(self, inner: Any) -> None:
        if self._tape.is_pulled:
            return
        try:
            async for data in self._tape.play():
                await inner.write(data)
            if self._closed_writing:
                await inner.done_writing()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            await self._attempt_over(inner)

    async def write(self, request: Any) -> None:
        """Send a request. Raises asyncio.InvalidStateError after the end or after done_writing, as grpc.aio does."""
        if self._request is not None:
            raise aio.UsageError(_MIXED)
        if self._code is not None:
            raise asyncio.InvalidStateError(_FINISHED)
        if self._closed_writing:
            raise asyncio.InvalidStateError(_HALF_CLOSED)
        data = self._method.serialize(request)
        inner = await self._live()
        # Recorded first: if the attempt fails under the write, the next one is given it from the tape.
        self._tape.record(data)
        try:
            await inner.write(data)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            await self._attempt_over(inner)
            if not self._has_left(inner):
                raise self._failed() if self._error is not None else asyncio.InvalidStateError(_FINISHED) from None
            await self._live()

    async def done_writing(self) -> None:
        """Tell the server that there are no more requests. May be called twice."""
        if self._request is not None:
            raise aio.UsageError(_MIXED)
        if self._code is not None or self._closed_writing:
            return
        inner = await self._live()
        self._closed_writing = True
        try:
            await inner.done_writing()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            await self._attempt_over(inner)
            if self._has_left(inner):
                await self._live()


class UnaryStreamCall(_Reading, aio.UnaryStreamCall[Any, Any]):
    """A request, a stream of responses."""

    def _begin(self, slot: Slot, timeout: float, metadata: Any) -> Any:
        return self._method.on(slot)(
            self._payload,
            timeout=timeout,
            metadata=metadata,
            credentials=self._credentials,
            compression=self._compression,
        )


class StreamUnaryCall(_Writing, aio.StreamUnaryCall[Any, Any]):
    """A stream of requests, a response."""

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the response; raise CallError if the call failed."""
        return self._response().__await__()

    async def _response(self) -> Any:
        while True:
            inner = await self._live()
            try:
                return await inner
            except aio.AioRpcError:
                await self._attempt_over(inner)
                if not self._has_left(inner):
                    raise self._failed() from None
            except asyncio.CancelledError:
                self._check_cancelled()


class StreamStreamCall(_Writing, _Reading, aio.StreamStreamCall[Any, Any]):
    """Streams both ways."""
