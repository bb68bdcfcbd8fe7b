"""The channel that generated stubs are given: a `grpc.aio.Channel` over all instances of one service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc import aio

from mesh.client.call import UnaryUnaryCall
from mesh.client.judging import is_repeatable
from mesh.client.method import CACHED, Method
from mesh.client.policies import ServicePolicies
from mesh.client.pool import Pool

if TYPE_CHECKING:
    from mesh.client.call import Call

_Serialize = Callable[[Any], bytes] | None
_Deserialize = Callable[[bytes], Any] | None

_ANOTHER_LOOP = "this channel belongs to another event loop: make one channel per loop (mesh.connect is cheap)"


class Channel(aio.Channel):
    """Made by `mesh.connect`. It begins to connect with its first use, in the event loop that is running then."""

    def __init__(self, pool: Pool, policies: ServicePolicies) -> None:
        self._pool = pool
        self._policies = policies
        self._methods: dict[Hashable, Method] = {}

    def __repr__(self) -> str:
        return f"<mesh.Channel {self._pool!r}>"

    def unary_unary(
        self,
        method: str,
        request_serializer: _Serialize = None,
        response_deserializer: _Deserialize = None,
        _registered_method: bool | None = False,
    ) -> aio.UnaryUnaryMultiCallable[Any, Any]:
        """Return what makes calls with one request and one response."""
        return UnaryUnary(
            self, self._method("unary_unary", method, request_serializer, response_deserializer, _registered_method)
        )

    def unary_stream(
        self,
        method: str,
        request_serializer: _Serialize = None,
        response_deserializer: _Deserialize = None,
        _registered_method: bool | None = False,
    ) -> aio.UnaryStreamMultiCallable[Any, Any]:
        """Return what makes calls with one request and a stream of responses."""
        return UnaryStream(
            self, self._method("unary_stream", method, request_serializer, response_deserializer, _registered_method)
        )

    def stream_unary(
        self,
        method: str,
        request_serializer: _Serialize = None,
        response_deserializer: _Deserialize = None,
        _registered_method: bool | None = False,
    ) -> aio.StreamUnaryMultiCallable[Any, Any]:
        """Return what makes calls with a stream of requests and one response."""
        return StreamUnary(
            self, self._method("stream_unary", method, request_serializer, response_deserializer, _registered_method)
        )

    def stream_stream(
        self,
        method: str,
        request_serializer: _Serialize = None,
        response_deserializer: _Deserialize = None,
        _registered_method: bool | None = False,
    ) -> aio.StreamStreamMultiCallable[Any, Any]:
        """Return what makes calls with streams both ways."""
        return StreamStream(
            self, self._method("stream_stream", method, request_serializer, response_deserializer, _registered_method)
        )

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY while an instance can be called. `try_to_connect` needs a running loop."""
        pool = self._pool
        if pool.closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if try_to_connect:
            self.open()
        if pool.loop is None:
            return grpc.ChannelConnectivity.IDLE
        if pool.roster.pickable:
            return grpc.ChannelConnectivity.READY
        hopeless = pool.roster.slots and pool.is_hopeless
        return grpc.ChannelConnectivity.TRANSIENT_FAILURE if hopeless else grpc.ChannelConnectivity.CONNECTING

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return when `get_state` says something else."""
        while self.get_state() is last_observed_state:
            self.open()
            await self._pool.changed(None)

    async def channel_ready(self) -> None:
        """Wait until an instance can be called."""
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                raise aio.UsageError("Channel is closed.")
            await self.wait_for_state_change(state)

    async def close(self, grace: float | None = None) -> None:
        """Give calls in flight `grace` seconds, cancel the rest, and let go of everything. May be called twice."""
        if not self._pool.closed:
            await self._pool.close(grace)

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def open(self) -> None:
        """Begin to connect, if that has not begun; raise if the loop is not the channel's, or the channel is closed."""
        loop, pool = asyncio.get_running_loop(), self._pool
        if pool.closed:
            raise aio.UsageError("Channel is closed.")
        if pool.loop is None:
            pool.start(loop)
        elif pool.loop is not loop:
            raise RuntimeError(_ANOTHER_LOOP)

    def _method(
        self, kind: str, path: str, serialize: _Serialize, deserialize: _Deserialize, registered: bool | None
    ) -> Method:
        # A stub made anew for each call finds what the first one made.
        key = (kind, path, serialize, deserialize)
        found = self._methods.get(key)
        if found is None:
            if len(self._methods) >= CACHED:
                self._methods.clear()
            policy = self._policies.of(path)
            found = Method(kind, path, policy, self._pool, serialize, deserialize, bool(registered))
            self._methods[key] = found
            self._policies.follow(found)
        return found


# A stub makes what makes its calls all at once; most clients begin with a plain one and need no more for it.
@cache
def _hedged() -> type[UnaryUnaryCall]:
    from mesh.client.hedging import HedgedCall

    return HedgedCall


@cache
def _stream(kind: str) -> type[Call]:
    from mesh.client.streams import StreamStreamCall, StreamUnaryCall, UnaryStreamCall

    kinds = {"unary_stream": UnaryStreamCall, "stream_unary": StreamUnaryCall, "stream_stream": StreamStreamCall}
    return kinds[kind]


class _MultiCallable:
    """Makes the calls of one method."""

    def __init__(self, channel: Channel, method: Method) -> None:
        self._channel = channel
        self._method = method
        self._pool = method.pool

    def _make(self, request: Any, *options: Any) -> Any:
        pool = self._pool
        if pool.closed or pool.loop is not asyncio.get_running_loop():
            self._channel.open()
        return _stream(self._method.kind)(self._method, request, *options)


class UnaryUnary(_MultiCallable, aio.UnaryUnaryMultiCallable[Any, Any]):
    """One request, one response."""

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryUnaryCall:
        """Start a call."""
        pool = self._pool
        if pool.closed or pool.loop is not asyncio.get_running_loop():
            self._channel.open()
        method = self._method
        kind = _hedged() if method.is_hedged and is_repeatable(method.policy, request) else UnaryUnaryCall
        return kind(method, request, timeout, metadata, credentials, wait_for_ready, compression)


class UnaryStream(_MultiCallable, aio.UnaryStreamMultiCallable[Any, Any]):
    """One request, a stream of responses."""

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> aio.UnaryStreamCall[Any, Any]:
        """Start a call."""
        return self._make(request, timeout, metadata, credentials, wait_for_ready, compression)  # type: ignore[no-any-return]  # one _make for all kinds


class StreamUnary(_MultiCallable, aio.StreamUnaryMultiCallable[Any, Any]):
    """A stream of requests, one response."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> aio.StreamUnaryCall[Any, Any]:
        """Start a call."""
        return self._make(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)  # type: ignore[no-any-return]  # one _make for all kinds


class StreamStream(_MultiCallable, aio.StreamStreamMultiCallable[Any, Any]):
    """Streams both ways."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> aio.StreamStreamCall[Any, Any]:
        """Start a call."""
        return self._make(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)  # type: ignore[no-any-return]  # one _make for all kinds
