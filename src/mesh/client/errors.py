"""What a failed call tells its caller: gRPC's own error, with an account of every attempt.

The code and the trailing metadata are those of the last attempt. The details are the server's, followed by the attempts
where they help: more than one was made, or it was the road and not the server that failed. A status that travels as
google.rpc.Status keeps its details as they came, because grpc_status compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import grpc
from grpc import aio

from mesh.client.ended import was_cancelled_here
from mesh.instance import AttemptRecord
from mesh.resilience.outcome import BREAKER_IS_OPEN

_STATUS_DETAILS = "grpc-status-details-bin"
_OF_THE_ROAD = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})

# gRPC's rules for metadata (doc/PROTOCOL-HTTP2.md): what breaks them makes grpc.aio raise ExecuteBatchError,
# TypeError or ValueError, none of them an RpcError.
_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[\x20-\x7e]*")


class CallError(aio.AioRpcError):
    """A call failed. `attempts` tells each try: endpoint, code, milliseconds."""

    attempts: tuple[AttemptRecord, ...] = ()
    unsent = False
    """Whether it was raised here, in the place of an attempt."""

    def __str__(self) -> str:
        return f"{self.code().name}: {self.details()}"


def not_let_through() -> CallError:
    """Return what a breaker answers that lets no call through."""
    nothing = aio.Metadata()
    error = CallError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, BREAKER_IS_OPEN, BREAKER_IS_OPEN)
    error.unsent = True
    return error


def attempts(error: object) -> tuple[AttemptRecord, ...]:
    """Return the attempts behind a failed call, or behind a call object; empty for anything else."""
    found = getattr(error, "attempts", ())
    return found if isinstance(found, tuple) else ()


def tell(
    code: grpc.StatusCode, details: str, tries: Sequence[AttemptRecord], trailing: Iterable[tuple[str, object]]
) -> str:
    """Return the details of an error, the attempts told where they help."""
    if was_cancelled_here(code.name, details) or any(key == _STATUS_DETAILS for key, _ in trailing):
        return details
    if not tries or (len(tries) == 1 and code.name not in _OF_THE_ROAD):
        return details
    count = "1 attempt" if len(tries) == 1 else f"{len(tries)} attempts"
    return f"{details} ({count}: {'; '.join(map(str, tries))})"


def metadata_fault(metadata: object) -> str | None:
    """Return what is wrong with a caller's metadata, in a sentence, or None."""
    try:
        pairs = [(key, value) for key, value in metadata]  # type: ignore[attr-defined]  # anything may come; this finds out
    except (TypeError, ValueError):
        return "metadata must be a sequence of pairs (key, value)"
    for key, value in pairs:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            return f"metadata key {key!r:.80} is not allowed: use 0-9 a-z _ . -"
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                return f"metadata {key!r:.80} must be bytes, as its name ends in -bin"
        elif not isinstance(value, str | bytes) or not _TEXT.fullmatch(
            value if isinstance(value, str) else value.decode("latin-1")
        ):
            return f"the value of metadata {key!r:.80} is not allowed: printable ASCII, no line breaks"
    return None
