"""The border: what grpc and etcd say went wrong becomes an error of ours, in one place.

etcd tells some errors apart only by their text (api/v3rpc/rpctypes/error.go lists them).
"""

from __future__ import annotations

import re

import grpc

from mesh.errors import Compacted, LeaseLost, StoreDenied, StoreError, StoreUnavailable
from mesh.telemetry.metrics import STORE_ERRORS


class Silent(StoreUnavailable):
    """A member keeps its connections open and answers nothing."""


# The token has expired, was made before the users were changed, or its member was restarted: a new one will do.
_TOKEN_TROUBLE = ("invalid auth token", "revision of auth store is old")

_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,  # a broken connection, often
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNIMPLEMENTED,  # something else has the port
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # too many requests, or no space: an operator or time will help
        grpc.StatusCode.ABORTED,
    }
)
_DENIED = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})


def is_token_trouble(error: grpc.aio.AioRpcError) -> bool:
    """Whether the same request with a fresh token may succeed."""
    return any(text in (error.details() or "") for text in _TOKEN_TROUBLE)


def is_auth_off(error: grpc.aio.AioRpcError) -> bool:
    """Whether etcd asks for no users at all."""
    return "authentication is not enabled" in (error.details() or "")


def translate(error: grpc.aio.AioRpcError, member: str, user: str) -> StoreError:
    """Turn an RPC's failure into a store's, told in one sentence, and count it."""
    translated = _translate(error.code(), error.details() or "", member, user)
    STORE_ERRORS.labels(_kind(translated)).inc()
    return translated


def unreachable(member: str, reason: str) -> StoreUnavailable:
    """Tell that a member cannot be talked to, and count it."""
    error = StoreUnavailable(f"cannot reach etcd at {member}: {reason}; {_advice(reason)}")
    STORE_ERRORS.labels("unavailable").inc()
    return error


def silent(member: str, what: str) -> StoreUnavailable:
    """Tell that a member does not react, and count it."""
    STORE_ERRORS.labels("unavailable").inc()
    return Silent(f"etcd at {member} hangs: {what}")


def denied(user: str, reason: str) -> StoreDenied:
    """Tell that etcd refuses who we are, and count it."""
    STORE_ERRORS.labels("denied").inc()
    return _denied(reason, user)


def _translate(code: grpc.StatusCode, details: str, member: str, user: str) -> StoreError:
    if "requested lease not found" in details:
        return LeaseLost("the lease has expired or was revoked")
    if "required revision has been compacted" in details:
        return Compacted(0)
    if code in _DENIED or "user name is empty" in details or "authentication failed" in details:
        return _denied(details, user)
    if code in _AWAY:
        reason = _short(details) or code.name
        return StoreUnavailable(f"cannot reach etcd at {member}: {reason}; {_advice(details)}")
    return StoreError(f"etcd at {member} answered {code.name}: {_short(details)}")


def _denied(details: str, user: str) -> StoreDenied:
    if "user name is empty" in details or not user:
        return StoreDenied("etcd asks for a user: set MESH_ETCD_USER and MESH_ETCD_PASSWORD")
    if "authentication failed" in details:
        return StoreDenied(
            f"etcd refused user {user!r}, wrong name or password: check MESH_ETCD_USER and MESH_ETCD_PASSWORD"
        )
    return StoreDenied(f"etcd user {user!r} may not do this: ask for read and write permission under the mesh's prefix")


def _advice(details: str) -> str:
    text = details.lower()
    if "database space exceeded" in text:
        return "compact and defragment it, then disarm the alarm"
    if any(word in text for word in ("ssl", "tls", "tsi_", "certificate", "handshake")):
        return "check MESH_ETCD_TLS_CA, MESH_ETCD_TLS_CERT and MESH_ETCD_TLS_KEY"
    if "socket closed" in text and "stream removed" not in text:
        return "does it speak TLS and ask for a certificate? see MESH_ETCD_TLS_CA"
    return "is it running? set MESH_ETCD"


def _short(details: str) -> str:
    """Leave out grpc's preamble and its list of addresses; keep the reason."""
    text = details.removeprefix("etcdserver: ")
    text = re.sub(r"^failed to connect to all addresses; last error: (\w+: )?", "", text)
    text = re.sub(r"^(ipv4|ipv6|unix):\S+ ", "", text)
    text = re.sub(r"^Tls handshake failed .*OPENSSL_internal:", "TLS handshake failed: ", text).removesuffix(": OK")
    return " ".join(text.split())[:200]


def _kind(error: StoreError) -> str:
    for kind, name in _KINDS:
        if isinstance(error, kind):
            return name
    return "other"


_KINDS: tuple[tuple[type[StoreError], str], ...] = (
    (StoreUnavailable, "unavailable"),
    (StoreDenied, "denied"),
    (LeaseLost, "lease_lost"),
    (Compacted, "compacted"),
)
