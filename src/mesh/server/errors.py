"""How a refusal travels: `mesh.Refusal` to google.rpc.Status and back.

The status is one message, one ErrorInfo, then what the servicer added (https://google.aip.dev/193). What the
mesh itself refuses, and the texts that never say why a server broke, stand here too.
"""

from __future__ import annotations

from dataclasses import replace

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from mesh.errors import Refusal

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "mesh"

# Clients refuse metadata over 8 KiB with RESOURCE_EXHAUSTED, and base64 adds a third: what does not fit is left out,
# because an answer without its details is better than another error in its place.
_DETAILS_LIMIT = 4096
_MESSAGE_LIMIT = 1024

_CODES = {code.value[0]: code for code in grpc.StatusCode}

UNREADABLE = Refusal(
    grpc.StatusCode.INVALID_ARGUMENT, "The request is not a message of this method.", "REQUEST_UNREADABLE", DOMAIN
)
NO_TIME_LEFT = Refusal(
    grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline had passed when the call arrived.", "NO_TIME_LEFT", DOMAIN
)
IN_VAIN = Refusal(
    grpc.StatusCode.DEADLINE_EXCEEDED,
    "The time left is shorter than the method takes at its fastest.",
    "NO_TIME_LEFT",
    DOMAIN,
)
TOO_SLOW = Refusal(
    grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline passed before the answer was ready.", "TOO_SLOW", DOMAIN
)
NEED_UNMET = Refusal(
    grpc.StatusCode.UNAVAILABLE, "A service that this one needs is not available.", "NEED_UNMET", DOMAIN
)
NEED_FULL = Refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "A service that this one needs has no room for the call.", "NEED_FULL", DOMAIN
)
OVERLOADED = Refusal(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "This server has more calls than it can answer in time: call again a little later.",
    "OVERLOADED",
    DOMAIN,
    details=(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1)),),
)
LEAVING = Refusal(grpc.StatusCode.UNAVAILABLE, "This server is leaving: call again.", "LEAVING", DOMAIN)
NOT_IMPLEMENTED = Refusal(
    grpc.StatusCode.UNIMPLEMENTED, "This server does not implement the method.", "NOT_IMPLEMENTED", DOMAIN
)
BROKEN = Refusal(
    grpc.StatusCode.INTERNAL, "The server made a mistake; its log tells which.", "UNEXPECTED_ERROR", DOMAIN
)


def status_of(refusal: Refusal) -> status_pb2.Status:
    """Return the refusal as google.rpc.Status, its details cut to what a client will accept."""
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message[:_MESSAGE_LIMIT])
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=refusal.domain, metadata=dict(refusal.facts))
    for detail in (info, *refusal.details):
        packed = AnyMessage()
        if isinstance(detail, AnyMessage):  # of a refusal that came from below
            packed.CopyFrom(detail)
        else:
            packed.Pack(detail)
        if status.ByteSize() + packed.ByteSize() > _DETAILS_LIMIT:
            break
        status.details.append(packed)
    return status


def trailer_of(refusal: Refusal) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata that carries the refusal."""
    if refusal is OVERLOADED:
        return _OVERLOADED
    return ((DETAILS_KEY, status_of(refusal).SerializeToString()),)


# Made once: refusing must cost little just then.
_OVERLOADED = ((DETAILS_KEY, status_of(OVERLOADED).SerializeToString()),)


def refusal_of(error: Exception) -> Refusal | None:
    """Return the refusal that a failed call carries, or None if it carries none.

    `details` are then google.protobuf.Any messages: unpack those whose types you know.
    """
    read = getattr(error, "trailing_metadata", None)
    for key, value in (read() if read is not None else None) or ():
        if key == DETAILS_KEY:
            return _read(value)
    return None


def need_full(error: Exception) -> Refusal:
    """Return what to answer where a service below has no room: with its RetryInfo, if it gave one."""
    below, retry = refusal_of(error), error_details_pb2.RetryInfo.DESCRIPTOR
    details = below.details if below is not None else ()
    return replace(NEED_FULL, details=[d for d in details if isinstance(d, AnyMessage) and d.Is(retry)])


def _read(value: bytes) -> Refusal | None:
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(value)
        first = next((d for d in status.details if d.Is(info.DESCRIPTOR)), None)
        if first is not None:
            first.Unpack(info)
    except DecodeError:
        return None
    rest = tuple(d for d in status.details if d is not first)
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return Refusal(code, status.message, info.reason, info.domain, dict(info.metadata), rest)
