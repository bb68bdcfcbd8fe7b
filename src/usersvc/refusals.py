"""Every way in which the service says no, one function each: status code, sentence, reason, and facts for programs.

The reasons are part of the contract and never change their meaning. Sentences name no user's name or email.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ResourceInfo, RetryInfo

from mesh.errors import Refusal

DOMAIN = "users.v1"
_TYPE = "users.v1.User"
_Code = grpc.StatusCode


def _refusal(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    *details: Message,
    facts: Mapping[str, str] | None = None,
    is_final: bool = False,
) -> Refusal:
    return Refusal(code, message, reason, DOMAIN, facts or {}, details, is_final)


def _about(id: str, description: str) -> ResourceInfo:
    return ResourceInfo(resource_type=_TYPE, resource_name=id, description=description)


def invalid(wrong: Iterable[tuple[str, str]]) -> Refusal:
    """Some fields are wrong: pairs of the field's path and what is to be written instead."""
    pairs = list(wrong)
    violations = [BadRequest.FieldViolation(field=field, description=text) for field, text in pairs]
    sentence = "; ".join(f"{field}: {text}" for field, text in pairs)
    return _refusal(_Code.INVALID_ARGUMENT, sentence, "INVALID_USER", BadRequest(field_violations=violations))


def invalid_request(field: str, text: str, reason: str = "INVALID_REQUEST") -> Refusal:
    """A field of the request that is no part of a user is wrong."""
    violation = BadRequest.FieldViolation(field=field, description=text)
    return _refusal(
        _Code.INVALID_ARGUMENT,
        f"{field}: {text}",
        reason,
        BadRequest(field_violations=[violation]),
        facts={"field": field},
    )


def bad_page_token() -> Refusal:
    """The page token was not made for this request."""
    return invalid_request("page_token", "send next_page_token of the page before, unchanged", "INVALID_PAGE_TOKEN")


def bad_resume_token() -> Refusal:
    """The resume token was not made by this service."""
    return invalid_request("resume_token", "send the resume_token of a change, unchanged", "INVALID_RESUME_TOKEN")


def request_id_reused() -> Refusal:
    """The request_id already names a request of another content."""
    return invalid_request(
        "request_id", "it named a request of another content before; make a new UUID", "REQUEST_ID_REUSED"
    )


def user_not_found(*ids: str) -> Refusal:
    """There is no such user."""
    details = [_about(id, "there is no such user") for id in ids[:10]]
    message = f"There is no user {ids[0]!r}." if len(ids) == 1 else f"{len(ids)} of the users do not exist."
    return _refusal(_Code.NOT_FOUND, message, "USER_NOT_FOUND", *details, facts={"id": ids[0]})


def user_already_exists(id: str) -> Refusal:
    """The id is taken."""
    return _refusal(
        _Code.ALREADY_EXISTS,
        f"There is a user {id!r} already: choose another id or leave it empty.",
        "USER_ALREADY_EXISTS",
        _about(id, "the id is taken"),
        facts={"id": id},
    )


def email_taken() -> Refusal:
    """Another user has the email. Whose it is, is not told."""
    return _refusal(
        _Code.ALREADY_EXISTS,
        "Another user has this email: use another one.",
        "EMAIL_TAKEN",
        ResourceInfo(resource_type=_TYPE, description="the email is taken"),
        facts={"field": "email"},
    )


def stale_etag(id: str) -> Refusal:
    """The user has changed since the etag was read."""
    return _refusal(
        _Code.ABORTED,
        f"User {id!r} has changed since: get it again and repeat the change.",
        "STALE_ETAG",
        _about(id, "the etag is not the present one"),
        facts={"id": id},
    )


def changes_forgotten() -> Refusal:
    """The watch cannot be resumed: changes since were forgotten."""
    return _refusal(
        _Code.OUT_OF_RANGE,
        "The change to resume after is too old: list the users, then watch anew.",
        "CHANGES_FORGOTTEN",
    )


def unavailable(*, is_final: bool = False) -> Refusal:
    """The database is away, locked or slow. is_final: it was waited for as long as the caller waits."""
    return _refusal(
        _Code.UNAVAILABLE,
        "The users cannot be reached now: try again.",
        "DATABASE_UNAVAILABLE",
        RetryInfo(retry_delay=Duration(nanos=100_000_000)),
        is_final=is_final,
    )


def full() -> Refusal:
    """The database is full."""
    return _refusal(
        _Code.RESOURCE_EXHAUSTED, "There is no room for more users: ask the operator to make some.", "DATABASE_FULL"
    )
