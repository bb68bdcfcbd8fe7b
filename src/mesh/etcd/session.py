"""A session with etcd: calls and streams that go to whichever member answers, as the user we are.

A call is tried at each member in turn before it fails. A stream is not resumed here: whoever reads it knows from where.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import grpc

from grpcmesh.etcd.v3 import etcd_pb2 as pb
from mesh.errors import StoreError, StoreUnavailable
from mesh.etcd.border import is_auth_off, is_token_trouble, silent, translate, unreachable
from mesh.etcd.members import Connection, Members
from mesh.etcd.wire import AUTHENTICATE, A, Method, Q

_log = logging.getLogger("mesh.etcd")

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

# Seconds for one try at one member: longer than a slow etcd takes (2 s), short enough to leave a hung one within 8 s.
CALL_TIMEOUT = 3.5
# A member cut off from the others shall refuse instead of telling old news or none (clientv3.WithRequireLeader).
_REQUIRE_LEADER = ("hasleader", "true")


class Stream(Generic[Q, A]):
    """A stream in both directions with one member."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Q, A], member: str) -> None:
        self._call = call
        self.member = member
        self._over = asyncio.Event()
        call.add_done_callback(lambda _: self._over.set())

    async def send(self, message: Q) -> None:
        """Send a message. Raises StoreUnavailable if the member does not take it."""
        await self._bounded(self._write(message), CALL_TIMEOUT)

    async def _write(self, message: Q) -> None:
        """Write, or fail as the call does: grpc.aio waits for ever in a write if the call is cancelled before its
        metadata was sent.
        """
        writing, over = asyncio.ensure_future(self._call.write(message)), asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait([writing, over], return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                raise await self._failure()
            await writing
        finally:
            writing.cancel()
            over.cancel()

    async def _failure(self) -> Exception:
        call = self._call
        if call.cancelled():
            return unreachable(self.member, "the connection was left")
        code, details = await call.code(), await call.details()
        return grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), details)

    async def read(self) -> A:
        """Return the next message, however long it takes. Raises StoreUnavailable if the stream ends."""
        message = await self._bounded(self._call.read(), None)
        if message is grpc.aio.EOF:
            raise unreachable(self.member, "it ended the stream")
        return message  # type: ignore[return-value]  # the stubs give EOF the type object

    def silent(self, what: str) -> StoreUnavailable:
        """Return the error to raise when an answer is overdue."""
        return silent(self.member, what)

    async def _bounded(self, operation: Awaitable[T], limit: float | None) -> T:
        try:
            async with asyncio.timeout(limit):
                return await operation
        except TimeoutError:
            raise silent(self.member, f"it took nothing for {limit:g} s") from None
        except asyncio.InvalidStateError:
            raise unreachable(self.member, "it ended the stream") from None
        except asyncio.CancelledError:
            _pass_on_our_own_cancellation()
            raise unreachable(self.member, "the connection was left") from None


async def drop(reading: asyncio.Task[T] | None) -> None:
    """End a task that reads, whatever it was about to say."""
    if reading is not None:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


class Session:
    """Calls and streams to etcd. Only used from one event loop.

    `connected` says whether the last exchange went well; `_token` is what etcd gave for the password.
    """

    def __init__(self, members: Members, user: str = "", password: str = "") -> None:
        self._members = members
        self._user = user
        self._password = password
        self._token = ""
        self._authenticating = asyncio.Lock()
        self._closed = False
        self.connected = False

    async def call(self, method: Method[Q, A], request: Q) -> A:
        """Call etcd and return its answer; raise a StoreError."""
        fresh = False  # whether the token was already renewed for this call
        error: StoreError = StoreUnavailable("no member of etcd was tried")
        tries = max(2, len(self._members))  # twice at the only one: a restart may have cut a connection that was idle
        while tries:
            with self._members.connection() as connection:
                try:
                    answer = await self._try(connection, method, request)
                    self._went_well(connection)
                    return answer
                except grpc.aio.AioRpcError as e:
                    if is_token_trouble(e) and self._user and not fresh:
                        fresh, self._token = True, ""
                        continue
                    error = translate(e, connection.member, self._user)
                    hung = e.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if not isinstance(error, StoreUnavailable):
                raise error
            self.leave(connection, error)
            # A second wait for the only member, if it hangs, helps nobody.
            tries = 0 if hung and len(self._members) == 1 else tries - 1
        raise error

    @asynccontextmanager
    async def stream(self, method: Method[Q, A]) -> AsyncIterator[Stream[Q, A]]:
        """Open a stream with the present member. Whatever breaks it comes out as a StoreError."""
        with self._members.connection() as connection:
            call: grpc.aio.StreamStreamCall[Q, A] | None = None
            try:
                metadata = await self._metadata(connection)
                call = connection.channel.stream_stream(method.path, method.encode, method.decode)(metadata=metadata)
                connection.streams.add(call)
                yield Stream(call, connection.member)
            except grpc.aio.AioRpcError as e:
                raise self._broke(connection, e) from e
            except StoreUnavailable as e:
                self.leave(connection, e)
                raise
            finally:
                if call is not None:
                    connection.streams.discard(call)
                    call.cancel()

    def heard(self) -> None:
        """Note that a stream told something."""
        if not self.connected:
            self.connected = True
            _log.info("connected to etcd at %s", self._members.at, extra={"event.action": "store-connected"})

    def forget_token(self) -> None:
        """Ask for a new token before the next exchange."""
        self._token = ""

    @property
    def user(self) -> str:
        """The user that we speak as, or an empty text."""
        return self._user

    def leave(self, connection: Connection, error: StoreError) -> None:
        """Leave a member that failed."""
        if self.connected:
            self.connected = False
            _log.warning("%s", error, extra={"event.action": "store-disconnected"})
        self._members.failed(connection)

    async def close(self) -> None:
        """End every exchange."""
        self._closed = True
        self.connected = False
        await self._members.close()

    async def _try(self, connection: Connection, method: Method[Q, A], request: Q) -> A:
        metadata = await self._metadata(connection)
        return await _unary(connection, method, request, metadata)

    async def _metadata(self, connection: Connection) -> Metadata:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if not self._user:
            return (_REQUIRE_LEADER,)
        async with self._authenticating:
            if not self._token:
                self._token = await self._authenticate(connection)
        return (_REQUIRE_LEADER, ("token", self._token)) if self._token else (_REQUIRE_LEADER,)

    async def _authenticate(self, connection: Connection) -> str:
        request = pb.AuthenticateRequest(name=self._user, password=self._password)
        try:
            answer = await _unary(connection, AUTHENTICATE, request, (_REQUIRE_LEADER,))
        except grpc.aio.AioRpcError as e:
            if is_auth_off(e):
                return ""  # as etcd's own clients do: users may be switched on later
            raise
        return answer.token

    def _went_well(self, connection: Connection) -> None:
        if connection.retired:
            return
        self.heard()

    def _broke(self, connection: Connection, error: grpc.aio.AioRpcError) -> StoreError:
        if is_token_trouble(error) and self._user:
            self.forget_token()
            return StoreUnavailable(f"etcd at {connection.member} asks for a new token")
        translated = translate(error, connection.member, self._user)
        if isinstance(translated, StoreUnavailable):
            self.leave(connection, translated)
        return translated


async def _unary(connection: Connection, method: Method[Q, A], request: Q, metadata: Metadata) -> A:
    call = connection.channel.unary_unary(method.path, method.encode, method.decode)
    try:
        return await call(request, timeout=CALL_TIMEOUT, metadata=metadata)
    except asyncio.CancelledError:
        _pass_on_our_own_cancellation()
        raise unreachable(connection.member, "the connection was closed") from None


def _pass_on_our_own_cancellation() -> None:
    """Raise again the CancelledError being handled if it is our task's; grpc raises the same when a channel closes."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise
