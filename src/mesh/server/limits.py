"""What a server permits its callers: the channel arguments of every mesh server, each with its reason."""

from __future__ import annotations

Option = tuple[str, int]

# Every message of a contract is a few KiB; a larger one is a mistake or an attack, and memory is shared by all callers.
# Over it the call ends with RESOURCE_EXHAUSTED. Raise it and one caller can make the server hold that much per call.
MESSAGE_LIMIT_BYTES = 1024 * 1024

# gRPC's defaults, written down because clients and Envoy count on them: over the first a call is refused more and more
# often, over the second always.
METADATA_SOFT_LIMIT_BYTES = 8 * 1024
METADATA_HARD_LIMIT_BYTES = 16 * 1024

# Calls at once on one connection; more wait at the client. An asyncio server has no use for more in parallel, and
# without a limit one connection can queue work until memory ends (rapid reset, CVE-2023-44487).
CONCURRENT_STREAMS = 1000

# Connections are made anew now and then, so that load spreads over instances that came later, and renewed certificates
# come to be used. gRPC adds a jitter of a tenth to it. Calls that run on an old connection finish, however long.
CONNECTION_AGE_MS = 30 * 60 * 1000

# Mesh clients notice a hung server by a ping a second. On a busy machine pings come late and then close together, so
# far more than that is admitted: at 500 ms and two strikes our own clients were sent away with too_many_pings. A flood
# is hundreds a second, and ends here after a tenth of one.
PING_INTERVAL_ADMITTED_MS = 100
PING_STRIKES = 10

# The server's own pings free what a caller that vanished holds. The HTTP/2 timeout must be given as well: without it
# grpcio waits a minute whatever the keepalive timeout says.
PING_EVERY_MS = 30_000
PING_TIMEOUT_MS = 5_000


def server_options() -> tuple[Option, ...]:
    """Return the channel arguments for `grpc.aio.server`."""
    return (
        # On by default in gRPC, and then two servers share a port in silence.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.max_metadata_size", METADATA_SOFT_LIMIT_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_HARD_LIMIT_BYTES),
        ("grpc.max_concurrent_streams", CONCURRENT_STREAMS),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_ADMITTED_MS),
        ("grpc.http2.max_ping_strikes", PING_STRIKES),
        ("grpc.keepalive_time_ms", PING_EVERY_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    )
