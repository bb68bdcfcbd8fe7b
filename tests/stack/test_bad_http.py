"""Bad input at the edge, as HTTP and JSON: every failure is a 4xx with a JSON body, and Envoy keeps serving."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from support.entrances import ask, send_bytes
from support.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]


def email() -> str:
    """An address that nobody has."""
    return f"{uuid.uuid4().hex}@private.example"


def body(**fields: Any) -> bytes:
    """A user as JSON, right but for `fields`."""
    return json.dumps({"name": "Trillian", "email": email()} | fields).encode()


JSON = {
    "cut short": b'{"name":"a","ema',
    "no JSON at all": b"name=a&email=b",
    "two values": b'{"name":"a"}{"name":"b"}',
    "an array": b"[]",
    "a number for a name": body(name=7),
    "an object for a name": body(name={"a": 1}),
    "an unknown field": body(admin=True),
    "NaN": b'{"name":NaN,"email":"x@private.example"}',
    "1e400 for a time": b'{"name":"a","email":"x@private.example","createTime":1e400}',
    "a wrong time": body(createTime="yesterday"),
    "invalid UTF-8": b'{"name":"\xff\xfe","email":"x@private.example"}',
    "a lone surrogate": b'{"name":"\\ud800","email":"x@private.example"}',
    "NUL in a name": b'{"name":"a\\u0000b","email":"x@private.example"}',
    "ten thousand levels": b'{"a":' * 10_000,
    "header injection": body(name="a\r\nX-Evil: 1"),
}


@pytest.mark.parametrize("target", ["/v1/users", "/users"])
@pytest.mark.parametrize("name", JSON)
def test_malformed_body_is_400_with_a_json_body(name: str, target: str, stack: Stack) -> None:
    answer = ask(stack.edge, "POST", target, JSON[name])

    assert answer.status == 400, answer.body
    assert_is_error(answer.json())
    assert b"private.example" not in answer.body


def assert_is_error(told: Any) -> None:
    """An error is an object with a code and one sentence."""
    assert isinstance(told["code"], int), told
    assert told["message"], told
    assert "\n" not in told["message"]


@dataclass(frozen=True)
class Ask:
    """A request line, and the statuses that are right for it."""

    method: str
    target: str
    statuses: tuple[int, ...]


PATHS = [
    Ask("GET", "/nowhere", (404,)),
    Ask("GET", "/", (404,)),
    Ask("GET", "/v1/users/a/b", (404,)),
    Ask("GET", "/v2/users", (404,)),
    Ask("PUT", "/v1/users", (404, 405)),
    Ask("DELETE", "/v1/users", (404, 405)),
    Ask("TRACE", "/v1/users", (400, 404, 405)),
    Ask("POST", "/v1/users/nobody", (404, 405)),
    Ask("GET", "/v1/users/../../etc/passwd", (400, 404)),
    Ask("GET", "/v1/users/%2e%2e/%2e%2e/admin", (400, 404)),
    Ask("GET", "/v1/users/a%2Fb", (400, 404)),
    Ask("GET", "/v1/users/a%5Cb", (400, 404)),
    Ask("GET", "/v1/users/a%00b", (400, 404)),
    Ask("GET", "/v1/users/%zz", (400, 404)),
    Ask("GET", "/v1/users//x", (400, 404)),
    Ask("GET", "/v1/users?unknown=1", (400,)),
    Ask("GET", "/v1/users?page_size=abc", (400,)),
    Ask("GET", "/v1/users?page_size=-1", (400,)),
    Ask("GET", "/v1/users?page_size=1e400", (400,)),
    Ask("GET", "/v1/users?page_size=99999999999", (400,)),
    Ask("GET", "/v1/users?page_token=%00", (400,)),
    Ask("GET", "/v1/users/nobody?id=other", (400, 404)),
    Ask("GET", "/v1/users/nobody", (404,)),
    Ask("GET", "/users?id=nobody", (404,)),
    Ask("GET", "/users", (400,)),
    Ask("DELETE", "/v1/users/nobody", (404,)),
    Ask("GET", "/v1/users/nobody?" + "a" * 10_000, (400, 404, 414, 431)),
    Ask("POST", "/users.v1.UserService/GetUser", (400, 404, 415)),
    Ask("POST", "/grpc.health.v1.Health/Check", (400, 404, 415)),
]


@pytest.mark.parametrize("row", PATHS, ids=lambda row: f"{row.method} {row.target[:40]}")
def test_wrong_path_verb_or_query_is_refused_with_a_json_body(row: Ask, stack: Stack) -> None:
    answer = ask(stack.edge, row.method, row.target)

    assert answer.status in row.statuses, answer
    assert "json" in answer.headers["content-type"], answer
    assert_is_error(answer.json())


def test_body_over_one_mebibyte_is_413(stack: Stack) -> None:
    answer = ask(stack.edge, "POST", "/v1/users", body(name="x" * (1 << 21)))

    assert answer.status == 413
    assert_is_error(answer.json())


@pytest.mark.parametrize("size", [40_000, 900_000])
def test_body_below_one_mebibyte_is_judged_by_what_it_says(size: int, stack: Stack) -> None:
    answer = ask(stack.edge, "POST", "/v1/users", body(name="x" * size))

    assert answer.status == 400, answer
    assert "200 characters" in answer.json()["message"]


HEADERS: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "200 headers": (b"".join(b"x-%d: 1\r\n" % i for i in range(200)), (431,)),
    "a header of 100 KiB": (b"x-long: " + b"y" * 100_000 + b"\r\n", (431,)),
    "a header with an underscore": (b"x_forged: 1\r\n", (400,)),
    "both lengths": (b"transfer-encoding: chunked\r\ncontent-length: 5\r\n", (400,)),
    "two lengths": (b"content-length: 5\r\ncontent-length: 6\r\n", (400,)),
    "NUL in a header": (b"x-nul: a\0b\r\n", (400,)),
    "a length that is none": (b"content-length: -1\r\n", (400,)),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers_are_refused(name: str, stack: Stack) -> None:
    headers, statuses = HEADERS[name]
    request = b"GET /v1/users HTTP/1.1\r\nhost: " + stack.edge.encode() + b"\r\n" + headers + b"\r\n"

    answer = send_bytes(stack.edge, request)

    status = re.match(rb"HTTP/1\.1 (\d+)", answer)
    assert status, answer
    assert int(status[1]) in statuses, answer


@pytest.mark.parametrize("junk", [b"\x00" * 100, b"GET\r\n\r\n", b"HELLO WORLD\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_bytes_that_are_no_http_are_refused_and_the_next_caller_is_served(junk: bytes, stack: Stack) -> None:
    answer = send_bytes(stack.edge, junk, timeout=2.0)

    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert ask(stack.edge, "GET", "/v1/users").status == 200
