"""What codes and details prove."""

from __future__ import annotations

import grpc
import pytest

from mesh.resilience.outcome import BREAKER_IS_OPEN, Outcome, outcome_of, was_surely_not_processed

OUTCOMES = {
    "OK": "success",
    "CANCELLED": "neutral",
    "UNKNOWN": "failure",
    "INVALID_ARGUMENT": "success",
    "DEADLINE_EXCEEDED": "failure",
    "NOT_FOUND": "success",
    "ALREADY_EXISTS": "success",
    "PERMISSION_DENIED": "neutral",
    "RESOURCE_EXHAUSTED": "neutral",
    "FAILED_PRECONDITION": "success",
    "ABORTED": "success",
    "OUT_OF_RANGE": "success",
    "UNIMPLEMENTED": "neutral",
    "INTERNAL": "failure",
    "UNAVAILABLE": "failure",
    "DATA_LOSS": "failure",
    "UNAUTHENTICATED": "neutral",
}


def test_every_code_is_classified() -> None:
    assert {code.name: outcome_of(code.name).value for code in grpc.StatusCode} == OUTCOMES
    assert outcome_of("SOMETHING_NEW") is Outcome.SUCCESS


OWN, NAMED = "10.0.0.1:5000", "users-1:5000"
CONNECT = "failed to connect to all addresses; last error: UNKNOWN: "
REFUSED = "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))"


@pytest.mark.parametrize(
    ("code", "details", "unconnected", "sure"),
    [
        ("UNAVAILABLE", f"{CONNECT}ipv4:10.0.0.1:5000: Connection refused", OWN, True),
        ("UNAVAILABLE", f"{CONNECT}ipv4:10.0.0.1:5000: Connection refused", None, False),
        ("UNAVAILABLE", f"{CONNECT}ipv4:10.0.0.2:5000: Connection refused", OWN, False),
        ("UNAVAILABLE", f"users: {CONNECT}ipv4:10.0.0.1:5000: Connection refused", OWN, False),
        ("UNAVAILABLE", f"{CONNECT}ipv4:10.0.0.2:5000: Connection refused", NAMED, True),
        ("UNAVAILABLE", f"{CONNECT}ipv4:10.0.0.2:5001: Connection refused", NAMED, False),
        ("UNAVAILABLE", f"{CONNECT}ipv6:%5B::1%5D:5000: Connection refused", "[::1]:5000", True),
        ("UNAVAILABLE", f"DNS resolution failed for {NAMED}: not found", NAMED, True),
        ("UNAVAILABLE", f"errors resolving {NAMED}: [not found]", NAMED, True),
        ("UNAVAILABLE", "Stream removed (Socket closed)", OWN, False),
        ("UNAVAILABLE", "Stream removed (recvmsg:Connection reset by peer (104))", OWN, False),
        ("UNAVAILABLE", "Stream removed (sendmsg: Broken pipe (32))", OWN, False),
        ("UNAVAILABLE", "Cancelling all calls", OWN, False),
        ("UNAVAILABLE", REFUSED, None, True),
        ("UNAVAILABLE", f"{REFUSED} (1 attempt: 10.0.0.2:5000 UNAVAILABLE 1 ms)", None, False),
        ("UNAVAILABLE", REFUSED.replace("7", "8"), None, False),
        ("UNAVAILABLE", BREAKER_IS_OPEN, OWN, False),
        ("INTERNAL", f"{CONNECT}ipv4:10.0.0.1:5000: Connection refused", OWN, False),
        ("INTERNAL", REFUSED, OWN, False),
    ],
)
def test_what_was_surely_not_processed(code: str, details: str, unconnected: str | None, sure: bool) -> None:
    assert was_surely_not_processed(code, details, unconnected) is sure
