"""The three kinds of calls with a stream. An attempt may be replaced by another until the caller has seen something
of the answer; from then on the call is committed, and what breaks is told.

Reading and writing go to the present attempt. Where that one failed and the call goes on, they wait for the next: the
driver makes it and plays the requests again.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from typing import Any, ClassVar

from grpc import aio

from mesh.client.attempts import Ended
from mesh.client.call import Call
from mesh.client.entries import NOTHING, Entries
from mesh.client.roster import Picked, Slot
from mesh.client.tape import Tape

_MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."
_FINISHED = "RPC already finished."
_HALF_CLOSED = 'RPC is half closed after calling "done_writing".'


class _Stream(Call):
    """The driver only starts attempts; their end is heard of by `_attempt_done`, which may drive again."""

    def _launch(self, picked: Picked, now: float) -> Any:
        inner = super()._launch(picked, now)
        self._connection.streams += 1
        return inner

    def _attempt_done(self, inner: Any) -> None:
        connection = self._connection if inner is self._running else None
        super()._attempt_done(inner)
        if connection is not None and self._running is not inner:
            connection.streams -= 1

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
    """A stream of responses. One that its reader has dropped is cancelled, as in grpc.aio, unless somebody waits to be
    called back: so nothing that lives as long as the attempt may hold it.
    """

    _messages: weakref.ref[AsyncIterator[Any]] | None = None
    """Weak, or reader and call would hold each other."""
    _iterating: bool | None = None
    _called_back: ClassVar[set[Call]] = set()

    def __del__(self) -> None:
        loop = self._method.pool.loop if self._inner is not None and self._code is None else None
        if loop is not None:
            with suppress(RuntimeError):  # the loop is closed: what ran in it is gone
                loop.call_soon_threadsafe(self._dropped)

    def _dropped(self) -> None:
        # Held until the attempt has ended, for the account.
        self._inner.add_done_callback(self._attempt_done)
        self.cancel()

    def _listener(self) -> Callable[[Any], None]:
        listener = weakref.WeakMethod(self._attempt_done)

        def tell(inner: Any) -> None:
            attempt_done = listener()
            if attempt_done is not None:
                attempt_done(inner)

        return tell

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call back with this object when the call has ended, at once if it has."""
        if self._code is None and self not in self._called_back:
            self._called_back.add(self)
            super().add_done_callback(self._called_back.discard)
        super().add_done_callback(callback)

    def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate over the responses; raise CallError if the call failed."""
        self._read_by(iterating=True)
        messages = self._messages() if self._messages is not None else None
        if messages is None:
            messages = self._iterate()
            self._messages = weakref.ref(messages)
        return messages

    async def read(self) -> Any:
        """Return the next response, or grpc.aio.EOF after the last one; raise CallError if the call failed."""
        self._read_by(iterating=False)
        return await self._read()

    def _read_by(self, *, iterating: bool) -> None:
        if self._iterating not in (None, iterating):
            raise aio.UsageError(_MIXED)
        self._iterating = iterating

    async def _iterate(self) -> AsyncIterator[Any]:
        while True:
            inner = await self._live()
            try:
                # By the attempt's own iterator: what stands between it and the caller is paid for by every message.
                async for message in inner:
                    if not self._committed:
                        self._commit()
                    yield message
                return
            except aio.AioRpcError:
                await self._attempt_over(inner)
                if not self._has_left(inner):
                    raise self._failed() from None
            except asyncio.CancelledError:
                self._check_cancelled()
                await self._attempt_over(inner)

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
    _begun: Any = None
    """The attempt that has taken a write."""

    def _begin(self, slot: Slot, timeout: float, metadata: Any) -> Any:
        if "_tape" not in self.__dict__:
            self._tape = Tape(self._request, self._method.serialize, self._commit)
        requests = self._tape.play() if self._tape.is_pulled else None
        return self._method.on(slot)(
            requests,
            timeout=timeout,
            metadata=Entries(metadata) if metadata else NOTHING,
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
                await self._give(inner, data)
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
            await self._give(inner, data)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            await self._attempt_over(inner)
            if not self._has_left(inner):
                raise self._failed() if self._error is not None else asyncio.InvalidStateError(_FINISHED) from None
            await self._live()

    async def _give(self, inner: Any, data: bytes) -> None:
        """Write to an attempt. Its first write is watched: grpc.aio waits there until the metadata was sent, and for
        ever if the attempt was cancelled before that.
        """
        if self._begun is inner:
            await inner.write(data)
            return
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        inner.add_done_callback(lambda _: None if over.done() else over.set_result(None))
        writing = asyncio.ensure_future(inner.write(data))
        try:
            await asyncio.wait((writing, over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not writing.done():
                writing.cancel()
        if not writing.done():
            raise asyncio.InvalidStateError(_FINISHED)
        writing.result()
        self._begun = inner

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
            metadata=Entries(metadata) if metadata else NOTHING,
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
