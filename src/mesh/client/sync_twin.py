"""Connections of the blocking kind, beside those of the loop: attempts that threads make themselves go over them.

grpc's asyncio channels serve one loop only, so a thread that is to wait for its answer itself needs a channel of the
other kind. A `Twin` is one, made like its connection (`mesh.client.connection`) and standing beside it; C-core does
not let the two share a socket, because they name different user agents. The connection stays the witness of the
instance's state: a twin is made when threads want one, is used while it is known to be connected, is asked anew after
an attempt on it has failed by the road, and goes when its connection breaks or closes. In all other moments calls go by
the loop.

Everything here runs under the lock of `mesh.client.thread`, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from mesh.client.options import Options
from mesh.client.thread import LoopThread

if TYPE_CHECKING:
    from mesh.client.method import Method

# A blocking channel of grpc tells its state by threads of its own, as long as it is asked. A client of a thousand
# instances asks a few at a time; calls to the others go by the loop meanwhile.
_MOST_ASKED = 16
# Those threads look every 0.2 s whether they are still wanted; a channel that is closed meanwhile makes them print an
# error (grpcio 1.66 to 1.85).
_QUIET_AFTER = 0.3

_CACHED = 1024


class Twin:
    """One channel for threads. `in_flight` is counted by whoever makes attempts."""

    __slots__ = ("calls", "channel", "in_flight", "is_asked", "is_closed", "is_retired", "quiet_at", "told")

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.calls: dict[Method, Any] = {}
        self.in_flight = 0
        self.told: Callable[[grpc.ChannelConnectivity], None] = print
        """What its channel tells its state to."""
        self.is_asked = False
        self.is_retired = False
        self.is_closed = False
        self.quiet_at = 0.0
        """By the loop's time: when nobody in grpc looks at its state any more."""

    def __repr__(self) -> str:
        words = [name for name in ("asked", "retired", "closed") if getattr(self, f"is_{name}")]
        return f"Twin({', '.join(words)}, {self.in_flight} in flight)"

    def on(self, method: Method) -> Any:
        """Return what makes attempts of a method. Requests go in serialized."""
        call = self.calls.get(method)
        if call is None:
            if len(self.calls) >= _CACHED:
                self.calls.clear()
            make: Any = self.channel.unary_unary  # stubs of it know no _registered_method
            call = self.calls[method] = make(
                method.path, None, method.response_deserializer, _registered_method=method.registered
            )
        return call


class Twins:
    """The twin of one connection, and those before it whose last calls have not ended."""

    def __init__(self, thread: LoopThread, connect: Callable[[], grpc.Channel]) -> None:
        self.ready: Twin | None = None
        """The one that was connected when it was last asked. A break after that makes an attempt fail, or C-core mends
        it.
        """
        self._current: Twin | None = None
        self._thread = thread
        self._connect = connect
        self._others: set[Twin] = set()
        self._ends: dict[Twin, asyncio.Future[None]] = {}
        self._closed = False

    def __repr__(self) -> str:
        word = "ready" if self.ready is not None else "not ready"
        return f"Twins({word}, {self._current!r}, others {sorted(map(repr, self._others))})"

    def want(self) -> None:
        """See to it that there will be a twin that is known to be connected."""
        if self._closed or self._thread.asked >= _MOST_ASKED:
            return
        twin = self._current
        if twin is None:
            twin = self._current = Twin(self._connect())
            twin.told = partial(self._told, twin)
        if not twin.is_asked:
            twin.channel.subscribe(twin.told, try_to_connect=True)
            twin.is_asked = True
            self._thread.asked += 1

    def doubt(self, twin: Twin) -> None:
        """Use it no more until it has said again that it is connected: an attempt on it has failed."""
        if twin is self._current:
            self.ready = None
            self.want()

    def left(self, twin: Twin) -> None:
        """Count an attempt out."""
        twin.in_flight -= 1
        if twin.is_retired:
            self.settle(twin)

    def settle(self, twin: Twin) -> None:
        """End a retired one if it has no attempt left."""
        if not twin.in_flight:
            self._thread.post(partial(self._end, twin))

    def retire(self) -> None:
        """Begin no more attempts on the present one. On the loop."""
        twin, self._current, self.ready = self._current, None, None
        if twin is None:
            return
        twin.is_retired = True
        self._others.add(twin)
        self._ask_no_more(twin)
        if not twin.in_flight:
            self._end(twin)

    async def close(self) -> None:
        """Cut what is left, and return when no attempt is. On the loop."""
        self._closed = True
        self.retire()
        for twin in list(self._others):
            self._end(twin)
        ends = [end for twin, end in self._ends.items() if twin.in_flight]
        if ends:
            await asyncio.wait(ends)

    def _told(self, twin: Twin, state: grpc.ChannelConnectivity) -> None:
        # On a thread of grpc's.
        if state is grpc.ChannelConnectivity.READY:
            with self._thread.gate, self._thread.state:
                self._ask_no_more(twin)
                if twin is self._current:
                    self.ready = twin

    def _ask_no_more(self, twin: Twin) -> None:
        if twin.is_asked:
            twin.is_asked = False
            twin.quiet_at = self._thread.loop.time() + _QUIET_AFTER
            self._thread.asked -= 1
            twin.channel.unsubscribe(twin.told)

    def _end(self, twin: Twin) -> None:
        if twin.is_closed:
            return
        twin.is_closed = True
        self._ends[twin] = self._thread.loop.create_future()
        threading.Thread(target=self._close, args=(twin,), name="mesh twin ends", daemon=True).start()

    def _close(self, twin: Twin) -> None:
        try:
            threading.Event().wait(twin.quiet_at - self._thread.loop.time())
            twin.channel.close()
        finally:
            self._thread.post(partial(self._ended, twin))

    def _ended(self, twin: Twin) -> None:
        self._others.discard(twin)
        end = self._ends.pop(twin)
        if not end.done():
            end.set_result(None)


def connector(target: str, credentials: grpc.ChannelCredentials | None, options: Options) -> Callable[[], grpc.Channel]:
    """Return what makes a channel of the blocking kind."""
    if credentials is None:
        return partial(grpc.insecure_channel, target, options=options)
    return partial(grpc.secure_channel, target, credentials, options=options)
