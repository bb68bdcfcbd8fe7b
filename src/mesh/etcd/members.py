"""Which member of etcd is spoken to, and over which connection.

We stay with the member that answers and move to the next at the first failure. A connection that failed is retired and
never used again: a new one connects at once, while grpc's own reconnecting would wait out a backoff. A retired
connection is closed when its last user has left, because closing it earlier would look to them like their own
cancellation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from mesh.clock import Dice
from mesh.credentials import channel_credentials, fingerprint
from mesh.errors import SettingsError
from mesh.etcd.border import unreachable
from mesh.instance import Endpoint
from mesh.settings import TLSFiles

_log = logging.getLogger("mesh.etcd")

# etcd refuses pings less than 5 s apart (--grpc-keepalive-min-time). Without ping_timeout_ms, grpc waits a minute for
# the answer, whatever keepalive_timeout_ms says. Pings find dead paths; a hung member is found sooner by what its
# streams do not tell, so the answer may take longer than a slow etcd does.
_PING_EVERY_MS = 5_500
_PING_TIMEOUT_MS = 4_000

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", _PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # ours go to another member
    ("grpc.use_local_subchannel_pool", 1),  # no backoff inherited from a retired connection
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the time that one connection attempt may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", -1),  # a listing is as large as the mesh
    ("grpc.enable_http_proxy", 0),  # etcd is never behind the web proxy
)


@dataclass(eq=False, slots=True)
class Connection:
    """A channel to one member, and how many use it."""

    member: str
    channel: grpc.aio.Channel
    mark: str = ""
    """Fingerprint of the certificates it was opened with."""
    users: int = 0
    retired: bool = False
    streams: set[grpc.aio.StreamStreamCall[Any, Any]] = field(default_factory=set)


class Members:
    """The members and the connection in use. Only touched from the store's event loop.

    `_at` is the member spoken to; `_current` its connection, once there is one; `_closing` the retired ones.
    """

    def __init__(self, endpoints: Sequence[Endpoint], tls: TLSFiles | None, dice: Dice) -> None:
        self._endpoints = tuple(map(str, endpoints))
        self._tls = tls
        self._at = dice.randrange(len(self._endpoints))  # spreads clients over members
        self._current: Connection | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def at(self) -> str:
        """The address of the member spoken to."""
        return self._endpoints[self._at]

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Use the connection to the present member. Raises StoreUnavailable if the certificates cannot be read."""
        connection = self._take()
        connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            self._close_if_unused(connection)

    def failed(self, connection: Connection) -> None:
        """Leave a connection and its member. Silent if that has happened already."""
        if connection.retired:
            return
        if connection is self._current:
            self._current = None
            self._at = (self._at + 1) % len(self._endpoints)
        self._retire(connection)

    async def close(self) -> None:
        """End everything that still runs."""
        if self._current is not None:
            connection, self._current = self._current, None
            connection.retired = True
            await connection.channel.close()
        if self._closing:
            await asyncio.wait(self._closing)

    def _take(self) -> Connection:
        mark = fingerprint(self._tls) if self._tls else ""
        current = self._current
        if current is not None and current.mark == mark:
            return current
        try:
            channel = self._open()
        except SettingsError as e:
            if current is None:
                raise unreachable(self.at, str(e)) from e
            _log.warning("kept the connection to etcd opened with the certificate before: %s", e)
            current.mark = mark
            return current
        if current is not None:
            self._retire(current)
        self._current = Connection(self.at, channel, mark)
        return self._current

    def _open(self) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(self.at, _OPTIONS)
        return grpc.aio.secure_channel(self.at, channel_credentials(self._tls), _OPTIONS)

    def _retire(self, connection: Connection) -> None:
        """Take a connection out of use. Its streams are cut, so that their owners notice and move on."""
        connection.retired = True
        for stream in tuple(connection.streams):
            stream.cancel()
        self._close_if_unused(connection)

    def _close_if_unused(self, connection: Connection) -> None:
        if connection.retired and not connection.users:
            task = asyncio.get_running_loop().create_task(connection.channel.close(), name="mesh-etcd-close")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
