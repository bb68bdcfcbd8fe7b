"""The requests of a streaming call, kept until the call is committed to an attempt, so that another attempt can have
them.

As in gRFC A6 the memory is bounded: a call that outgrew it is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

# gRPC's own retry buffer per call. More would keep large uploads twice in memory.
LIMIT_BYTES = 256 * 1024

Requests = AsyncIterable[Any] | Iterable[Any]


class Tape:
    """Serialized requests in order. With a source it pulls them as an attempt asks; without, `record` adds them."""

    def __init__(self, source: Requests | None, serialize: Callable[[Any], bytes], full: Callable[[], None]) -> None:
        """`full` is called when the limit is passed."""
        self._source = _as_async(source) if source is not None else None
        self._serialize = serialize
        self._full = full
        self._kept: list[bytes] = []
        self._dropped = 0
        self._size = 0
        self._forgetting = False
        self._pulling = asyncio.Lock()
        self.ended = False
        """No further request will come."""

    @property
    def is_pulled(self) -> bool:
        """Whether there is a source: the attempt plays the tape by itself."""
        return self._source is not None

    def record(self, data: bytes) -> None:
        """Add a request that the caller writes."""
        if self._forgetting:
            return
        self._kept.append(data)
        self._size += len(data)
        if self._size > LIMIT_BYTES:
            self._full()

    def forget(self) -> None:
        """There will be no other attempt: keep nothing that has been played."""
        self._forgetting = True
        if self._source is None:
            self._kept.clear()

    async def play(self) -> AsyncIterator[bytes]:
        """Yield every request from the first on, waiting for the source where the tape ends."""
        at = 0
        while at < self._dropped + len(self._kept) or await self._pull(at):
            if self._forgetting:
                at = max(at, self._dropped)
                self._drop(at)
            data = self._kept[at - self._dropped]
            at += 1
            yield data
            if self._forgetting and self._is_played(at):
                break
        if self._source is not None and not self.ended:
            # The last attempt, at the end of the tape: from here on straight from the source, at half the price.
            async for message in self._source:
                yield self._serialize(message)
            self.ended = True

    def _is_played(self, at: int) -> bool:
        """Whether nothing is on the tape after `at`, and no attempt before this one is still pulling."""
        return at == self._dropped + len(self._kept) and not self._pulling.locked()

    def _drop(self, before: int) -> None:
        del self._kept[: before - self._dropped]
        self._dropped = before

    async def _pull(self, at: int) -> bool:
        """Make request number `at` be there; False if there is none. One attempt pulls at a time: the source is one."""
        async with self._pulling:
            if at < self._dropped + len(self._kept):
                return True
            if self._source is None or self.ended:
                return False
            try:
                message = await anext(self._source)
            except StopAsyncIteration:
                self.ended = True
                return False
            data = self._serialize(message)
            self._kept.append(data)
            self._size += len(data)
            if self._size > LIMIT_BYTES and not self._forgetting:
                self._full()
            return True


def _as_async(source: Requests) -> AsyncIterator[Any]:
    return aiter(source) if isinstance(source, AsyncIterable) else _each(source)


async def _each(source: Iterable[Any]) -> AsyncIterator[Any]:
    for message in source:
        yield message
