"""What codes and details prove."""

from __future__ import annotations

import grpc
import pytest

from mesh.resilience.outcome import Outcome, outcome_of, was_surely_not_processed

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


@pytest.mark.parametrize(
    ("code", "details", "debug", "sure"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: …: Connection refused", "", True),
        ("UNAVAILABLE", "DNS resolution failed for users:1", "", True),
        ("UNAVAILABLE", "Stream removed (Socket closed)", "", False),
        ("UNAVAILABLE", "Stream removed (recvmsg:Connection reset by peer (104))", "", False),
        ("UNAVAILABLE", "Stream removed (sendmsg: Broken pipe (32))", "", False),
        ("UNAVAILABLE", "Cancelling all calls", "", False),
        ("UNAVAILABLE", "Received RST_STREAM with error code 7", "", True),
        ("UNAVAILABLE", "Stream refused", "UNAVAILABLE:… {http2_error:7}", True),
        ("UNAVAILABLE", "Received RST_STREAM with error code 8", "{http2_error:8}", False),
        ("INTERNAL", "failed to connect to all addresses", "", False),
    ],
)
def test_what_was_surely_not_processed(code: str, details: str, debug: str, sure: bool) -> None:
    assert was_surely_not_processed(code, details, debug) is sure
