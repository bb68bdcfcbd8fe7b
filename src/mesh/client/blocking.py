"""The blocking twin of `mesh.connect`: a `grpc.Channel` for threads.

It is a face only. Registry, connections, retries and breakers live in an asyncio channel on one daemon thread
(`thread`), so every decision is the same; a call goes there and its result comes back. Plain unary calls are begun,
and mostly ended, in the threads of their callers (`sync`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import get_ident
from typing import TYPE_CHECKING, Any

import grpc

from mesh.client import channel as asynchronous
from mesh.client.blocking_call import BlockingCall, response_of
from mesh.client.blocking_error import BlockingCallError
from mesh.client.connect import connect as connect_async
from mesh.client.errors import attempts
from mesh.client.method import Method
from mesh.client.sync import make_call
from mesh.client.thread import LoopThread
from mesh.clock import Clock, Dice
from mesh.instance import Endpoint
from mesh.policy import Balancer, BalancerPolicy, MethodPolicy
from mesh.settings import Settings
from mesh.wallclock import CLOCK, DICE

if TYPE_CHECKING:
    from mesh.store import Store

__all__ = ["BlockingCallError", "Channel", "attempts", "connect"]

_Serialize = Callable[[Any], bytes] | None
_Deserialize = Callable[[bytes], Any] | None


def connect(
    service: str,
    *,
    endpoints: Iterable[str | Endpoint] | None = None,
    settings: Settings | None = None,
    store: Store | None = None,
    policies: Mapping[str, MethodPolicy] | None = None,
    balancer: Balancer | BalancerPolicy | None = None,
    clock: Clock = CLOCK,
    dice: Dice = DICE,
) -> Channel:
    """Return a channel to all instances of a service, for threads and its generated stubs:

        with mesh.blocking.connect("users.v1.UserService") as channel:
            user = UserServiceStub(channel).GetUser(GetUserRequest(id="7"))

    Arguments, waiting and errors are those of `mesh.connect`; failures are BlockingCallError. A store must be usable
    from the mesh's own loop. The channel may be shared by threads, not by a forked child.
    """
    thread = LoopThread.shared()
    inner = connect_async(
        service,
        endpoints=endpoints,
        settings=settings,
        store=store,
        policies=policies,
        balancer=balancer,
        clock=clock,
        dice=dice,
    )
    return Channel(inner, thread)


class Channel(grpc.Channel):
    """Made by `mesh.blocking.connect`."""

    def __init__(self, inner: asynchronous.Channel, thread: LoopThread) -> None:
        self._inner = inner
        self._thread = thread
        self._watches: dict[Any, Any] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<mesh.blocking.Channel {self._inner!r}>"

    def unary_unary(
        self,
        method: str,
        request_serializer: _Serialize = None,
        response_deserializer: _Deserialize = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return what makes calls with one request and one response."""
        inner = self._inner.unary_unary(method, request_serializer, response_deserializer, _registered_method)
        return _UnaryUnary(self, inner)

    def unary_stream(
        self,
        method: str,
        request_serializer: _Serialize = None,
        response_deserializer: _Deserialize = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return what makes calls with one request and a stream of responses."""
        inner = self._inner.unary_stream(method, request_serializer, response_deserializer, _registered_method)
        return _UnaryStream(self, inner)

    def stream_unary(
        self,
        method: str,
        request_serializer: _Serialize = None,
        response_deserializer: _Deserialize = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return what makes calls with a stream of requests and one response."""
        inner = self._inner.stream_unary(method, request_serializer, response_deserializer, _registered_method)
        return _StreamUnary(self, inner)

    def stream_stream(
        self,
        method: str,
        request_serializer: _Serialize = None,
        response_deserializer: _Deserialize = None,
        _registered_method: bool | None = False,
    ) -> Any:
        """Return what makes calls with streams both ways."""
        inner = self._inner.stream_stream(method, request_serializer, response_deserializer, _registered_method)
        return _StreamStream(self, inner)

    def thread(self) -> LoopThread:
        """Return where calls are made. Raise ValueError, as grpc does, if the channel is closed, and RuntimeError where
        calls cannot be made (see LoopThread.check).
        """
        if self._closed:
            raise ValueError("Cannot invoke RPC on closed channel!")
        self._thread.check()
        return self._thread

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """Call back with the state now and whenever it changes, on the loop thread."""
        self._thread.check()
        self._watches[callback] = self._thread.begin(self._watch(callback, try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Call back no more."""
        watch = self._watches.pop(callback, None)
        if watch is not None:
            watch.cancel()

    async def _watch(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool) -> None:
        state = self._inner.get_state(try_to_connect)
        while True:
            callback(state)
            await self._inner.wait_for_state_change(state)
            state = self._inner.get_state()

    def close(self) -> None:
        """Cancel calls in flight and let go of everything. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._thread.check()
        for callback in list(self._watches):
            self.unsubscribe(callback)
        self._thread.run(self._inner.close())

    def __enter__(self) -> Channel:
        async def open_it() -> None:
            self._inner.open()

        self._thread.check()
        self._thread.run(open_it())
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()


class _MultiCallable:
    """Makes the calls of one method."""

    def __init__(self, channel: Channel, inner: Any) -> None:
        self._channel = channel
        self._inner = inner

    def _one(self, request: Any, unary: bool, options: Mapping[str, Any]) -> BlockingCall:
        return BlockingCall(self._channel.thread(), lambda: self._inner(request, **options), None, unary=unary)

    def _many(self, requests: Iterable[Any], unary: bool, options: Mapping[str, Any]) -> BlockingCall:
        return BlockingCall(self._channel.thread(), lambda: self._inner(None, **options), requests, unary=unary)


def _options(
    timeout: float | None = None,
    metadata: Any = None,
    credentials: grpc.CallCredentials | None = None,
    wait_for_ready: bool | None = None,
    compression: grpc.Compression | None = None,
) -> Mapping[str, Any]:
    return {
        "timeout": timeout,
        "metadata": metadata,
        "credentials": credentials,
        "wait_for_ready": wait_for_ready,
        "compression": compression,
    }


class _UnaryUnary(_MultiCallable, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # at run time it takes none
    def __init__(self, channel: Channel, inner: Any) -> None:
        super().__init__(channel, inner)
        self._method: Method = inner._method

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        arguments = (self._method, request, timeout, metadata, credentials, wait_for_ready, compression)
        return self._make(False, arguments)[0]

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        arguments = (self._method, request, timeout, metadata, credentials, wait_for_ready, compression)
        return self._make(True, arguments)

    def _make(self, telling: bool, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        channel, method = self._channel, self._method
        thread = channel._thread
        # Asking for the process's id, as check() does, costs a hundredth of a call.
        if channel._closed or thread.is_foreign or thread.ident == get_ident():
            channel.thread()
        # A hedged call has several attempts at once, of which a thread can wait for one only; and grpc's blocking
        # calls cannot be cancelled from elsewhere when another attempt is answered first.
        if method.is_hedged or method.pool.loop is None or method.pool.closed or thread.gate._is_owned():
            call = self.future(*arguments[1:])
            return response_of(call), call
        return make_call(thread, telling, arguments)

    def future(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return self._one(request, True, _options(*args, **kwargs))


class _UnaryStream(_MultiCallable, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]  # as above
    def __call__(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return self._one(request, False, _options(*args, **kwargs))


class _StreamUnary(_MultiCallable, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]  # as above
    def __call__(self, request_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        return self.with_call(request_iterator, *args, **kwargs)[0]

    def with_call(self, request_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        call = self.future(request_iterator, *args, **kwargs)
        return response_of(call), call

    def future(self, request_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        return self._many(request_iterator, True, _options(*args, **kwargs))


class _StreamStream(_MultiCallable, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]  # as above
    def __call__(self, request_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        return self._many(request_iterator, False, _options(*args, **kwargs))
