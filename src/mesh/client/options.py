"""How every connection to an instance is made, asyncio or blocking: channel arguments, with the reason of each
number.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

Options = Sequence[tuple[str, Any]]

# A hung peer is noticed after the first plus the second. `grpc.keepalive_timeout_ms` alone has no effect below 60 s
# (tried with grpcio 1.66 and 1.85): `grpc.http2.ping_timeout_ms` is what ends the wait.
_KEEPALIVE_MS = 1000
_PING_TIMEOUT_MS = 1000
# Other servers (Go's, Envoy, grpc with its defaults) answer pings more often than every five minutes with GOAWAY
# too_many_pings, which breaks the calls in flight; with at most two pings between requests it still took only 145 s on
# a quiet stream. There a hung peer shows by missed deadlines, which the breaker counts, and a black hole by
# TCP_USER_TIMEOUT, which grpc sets to the ping timeout.
_POLITE_KEEPALIVE_MS = 330_000
# What UserService and any service of small messages can hold; servers of the mesh admit 1 MiB requests.
_MAX_RECEIVE = 4 * 1024 * 1024

_COMMON: Options = (
    # One connection per channel: two channels to one address must not share a fate.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries are made above, on another host; stacked ones multiply. Off also saves up to 8 % of a call.
    ("grpc.enable_retries", 0),
    # The service config of a DNS name would bring retries and balancing of its own.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    # gRPC's own go up to 120 s: an instance that is back would wait for its clients.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 3000),
    # Despite its name: how long one attempt to connect may take. TLS over a slow link fits; a black hole is left soon.
    ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.max_receive_message_length", _MAX_RECEIVE),
)
_OURS: Options = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_OTHERS: Options = (("grpc.keepalive_time_ms", _POLITE_KEEPALIVE_MS),)


def connection_options(*, ours: bool) -> Options:
    """Return the channel arguments of a connection. `ours`: its server is one of the mesh, which admits our pings."""
    return (*_COMMON, *(_OURS if ours else _OTHERS))


def target_of(address: str) -> str:
    """Return what gRPC is to connect to. An address in numbers needs no resolver, which saves a connection 0.3 ms."""
    try:
        socket.inet_pton(socket.AF_INET, address.rpartition(":")[0])
    except (OSError, ValueError):
        return address
    return f"ipv4:{address}"
