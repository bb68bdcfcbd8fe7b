"""Refusals on the wire and back."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Refusal
from mesh.server.errors import DETAILS_KEY, refusal_of, status_of, trailer_of

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


class Failed(grpc.RpcError):
    """An error as a client sees it."""

    def __init__(self, trailer: object) -> None:
        self._trailer = trailer

    def trailing_metadata(self) -> object:
        return self._trailer


@given(st.sampled_from(CODES), text, text, text, st.dictionaries(text, text, max_size=4))
def test_a_refusal_comes_back_as_it_went(
    code: grpc.StatusCode, message: str, reason: str, domain: str, facts: dict[str, str]
) -> None:
    found = refusal_of(Failed(trailer_of(Refusal(code, message, reason, domain, facts))))
    assert found is not None
    assert (found.code, found.message, found.reason, found.domain, found.facts) == (
        code,
        message,
        reason,
        domain,
        facts,
    )


def test_details_are_cut_before_a_client_would_refuse_the_whole_answer() -> None:
    field = error_details_pb2.BadRequest.FieldViolation(field="x", description="y" * 100)
    small = error_details_pb2.BadRequest(field_violations=[field])
    huge = error_details_pb2.BadRequest(field_violations=[field] * 1000)
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "z" * 100_000, "R", "d", details=[small, huge, small])
    status = status_of(refusal)
    assert status.ByteSize() < 6000
    assert [d.TypeName() for d in status.details] == ["google.rpc.ErrorInfo", "google.rpc.BadRequest"]


@pytest.mark.parametrize("trailer", [None, (), (("other", "x"),), ((DETAILS_KEY, b"\xff\xff"),)])
def test_an_error_that_carries_no_refusal_has_none(trailer: object) -> None:
    assert refusal_of(Failed(trailer)) is None
    assert refusal_of(grpc.RpcError()) is None


def test_details_of_other_makers_are_kept_as_they_are() -> None:
    foreign = AnyMessage(type_url="type.example.org/x.Y", value=b"\x01")
    status = status_of(Refusal(grpc.StatusCode.ABORTED, "m", "R", "d"))
    status.details.append(foreign)
    found = refusal_of(Failed(((DETAILS_KEY, status.SerializeToString()),)))
    assert found is not None
    assert list(found.details) == [foreign]
