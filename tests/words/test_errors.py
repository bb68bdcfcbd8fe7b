"""Errors are read by people: each says in a sentence what is the matter."""

from __future__ import annotations

import grpc
import pytest

from mesh.errors import Compacted, InvalidName, MeshError, RecordError, Refusal, StoreError


def test_a_compaction_names_the_oldest_revision_that_is_known() -> None:
    error = Compacted(17)
    assert (error.revision, str(error)) == (17, "the history before revision 17 was compacted away")
    assert isinstance(error, StoreError)


def test_a_refusal_is_told_by_its_code_and_sentence() -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "there is no user 7", "USER_NOT_FOUND", "users.v1")
    assert str(refusal) == "NOT_FOUND: there is no user 7"


@pytest.mark.parametrize("kind", [InvalidName, RecordError])
def test_what_was_given_wrong_is_a_value_error_too(kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError) and issubclass(kind, MeshError)
