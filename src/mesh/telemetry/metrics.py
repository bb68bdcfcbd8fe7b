"""Every metric of the mesh, in one place, as docs/metrics.md lists them. Labels hold names from contracts and fixed
words only, so their number is bounded by the contracts known to a process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what they become
    from prometheus_client import Counter, Gauge, Histogram
else:
    from mesh.telemetry.meters import Counter, Gauge, Histogram

# A gRPC call on one machine takes about 1 ms; a default deadline is seconds.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Client
CLIENT_CALLS = Counter("mesh_client_calls", "Calls finished, by final code.", ["service", "method", "code"])
CLIENT_CALL_SECONDS = Histogram(
    "mesh_client_call_seconds",
    "Time of a call, all attempts and pauses included.",
    ["service", "method"],
    buckets=_SECONDS,
)
CLIENT_ATTEMPTS = Counter("mesh_client_attempts", "Attempts finished, by code.", ["service", "method", "code"])
CLIENT_RETRIES_REFUSED = Counter(
    "mesh_client_retries_refused", "Retries that were wanted and not made.", ["service", "reason"]
)
CLIENT_HEDGES = Counter("mesh_client_hedges", "Attempts made beside one that took long.", ["service", "method"])
CLIENT_ENDPOINTS = Gauge("mesh_client_endpoints", "Endpoints known to this client.", ["service", "state"])
CLIENT_BREAKER_TRANSITIONS = Counter("mesh_client_breaker_transitions", "Breakers that changed.", ["service", "to"])
CLIENT_STALLS = Counter("mesh_client_stalls", "Times that an instance was passed over because it hung.", ["service"])
CLIENT_BREAKER_VERDICTS = Counter(
    "mesh_client_breaker_verdicts", "Times that a rule said to leave an instance alone.", ["service", "rule"]
)

# Server
SERVER_CALLS = Counter("mesh_server_calls", "Calls answered, by code.", ["service", "method", "code"])
SERVER_CALL_SECONDS = Histogram(
    "mesh_server_call_seconds", "Time of a handler.", ["service", "method"], buckets=_SECONDS
)
SERVER_IN_FLIGHT = Gauge("mesh_server_in_flight", "Calls being answered.", ["service"])
SERVER_LIMIT = Gauge("mesh_server_limit", "Calls worked on at once before others wait.")
SERVER_SHED = Counter("mesh_server_shed", "Calls refused because there were too many.", ["service", "priority"])

# Registry
REGISTERED = Gauge("mesh_registry_registered", "1 while this instance is in the store.", ["service"])
REGISTRATIONS = Counter("mesh_registry_registrations", "Times this process put its instance there.", ["service"])
REGISTRY_STALE = Gauge("mesh_registry_stale", "1 while the last known instances are used unconfirmed.", ["service"])
REGISTRY_INSTANCES = Gauge("mesh_registry_instances", "Instances known.", ["service", "state"])
RECORDS_SKIPPED = Counter("mesh_registry_records_skipped", "Records that could not be used.", ["reason"])
WATCH_BREAKS = Counter("mesh_registry_watch_breaks", "Watches resumed after a break.", ["reason"])
COMPACTIONS = Counter("mesh_registry_compactions", "Watches that had to list again after a compaction.")
LEASES_LOST = Counter("mesh_registry_leases_lost", "Leases that ended without our asking.")
STORE_ERRORS = Counter("mesh_store_errors", "Requests to the store that failed, by kind.", ["kind"])

# Control plane
XDS_STREAMS = Gauge("mesh_xds_streams", "Streams open, by kind of client.", ["client"])
XDS_PUSHES = Counter("mesh_xds_pushes", "Responses sent.", ["type"])
XDS_ACKS = Counter("mesh_xds_acks", "Responses accepted.", ["type"])
XDS_NACKS = Counter("mesh_xds_nacks", "Responses refused by a client.", ["type"])
XDS_REFUSED = Counter("mesh_xds_requests_refused", "Requests ignored or closed.", ["reason"])
XDS_SNAPSHOTS = Counter("mesh_xds_snapshots", "Snapshots built, by result of their check.", ["result"])
