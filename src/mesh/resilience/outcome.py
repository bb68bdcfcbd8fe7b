"""What a finished attempt says: about the endpoint that answered, and about whether the server can have seen the
request.

Codes go by their names ("UNAVAILABLE"), so that the asyncio and the blocking client, and any simulation, share this
file.
"""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """What an attempt proves about its endpoint. Three, not two: most errors prove nothing."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


# The fault may be the endpoint's. UNKNOWN is what a crashed handler answers; DEADLINE_EXCEEDED is what a hung one
# gives.
_FAULTS = frozenset({"UNAVAILABLE", "INTERNAL", "UNKNOWN", "DATA_LOSS", "DEADLINE_EXCEEDED"})
# The endpoint works and says no, to this caller or to this much load. RESOURCE_EXHAUSTED is load (slow, not broken),
# UNIMPLEMENTED is the caller's version, CANCELLED is whoever hung up.
_NOTHING = frozenset({"CANCELLED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"})


def outcome_of(code: str) -> Outcome:
    """Classify a status code by its name. An application's own answer (NOT_FOUND, ABORTED, …) is a success of the
    host.
    """
    if code in _FAULTS:
        return Outcome.FAILURE
    return Outcome.NEUTRAL if code in _NOTHING else Outcome.SUCCESS


BREAKER_IS_OPEN = "the breaker is open: too many calls have failed"
"""Details of a call that a breaker did not let through."""
FORCED_OPEN = "an operator's policy keeps its breakers open"
"""In the details of a call that such a policy did not let through."""

# How gRPC's core begins where no byte of the request left this process: no connection could be made, or the name not be
# resolved. Then comes the address that was tried. tests/client/test_unsent.py holds the library to it.
_NEVER_SENT = ("failed to connect to all addresses; ", "DNS resolution failed for ", "errors resolving ")
# All that it says where the peer did not look at the stream: HTTP/2 error code 7 (RFC 9113, 8.7: safe to send again).
_REFUSED_STREAM = "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))"


def was_surely_not_processed(code: str, details: str, unconnected: str | None) -> bool:
    """Tell whether the server cannot have acted on the request: it was never sent, or the stream was refused unread.
    `unconnected`: the address that it was for ("host:port"), if there is no connection to it now.

    Whatever the core says of itself may as well be the server's answer: a handler that passes a failure on says the
    same of the server that it had called, and nothing else tells the two apart. So words count only where no
    connection stands and they name the address itself, or where nothing is added to them.

    A connection that broke under the call ("Socket closed", "Connection reset by peer", "Broken pipe") proves nothing:
    the server may have read the request and died answering.
    """
    if code != "UNAVAILABLE":
        return False
    if details == _REFUSED_STREAM:
        return True
    if unconnected is None or not details.startswith(_NEVER_SENT):
        return False
    host, _, port = unconnected.rpartition(":")
    # The core writes IPv4 addresses as they are, IPv6 ones in its own way, and names as what they stand for.
    return (f"ipv4:{unconnected}: " if host.replace(".", "").isdigit() else f":{port}: ") in details
