"""Bad input at the edge: refused by Envoy with one shape of JSON error, before an instance sees any of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from support.entrances import ask, send_bytes
from support.front import Front

BODIES: dict[str, bytes] = {
    "cut short": b'{"name":"a","ema',
    "no JSON": b"name=a",
    "two values": b'{"name":"a"}{"name":"b"}',
    "a list": b"[]",
    "a text": b'"a"',
    "a number for a text": b'{"name":7}',
    "a boolean for a text": b'{"name":true}',
    "an object for a text": b'{"name":{"a":1}}',
    "a list for a text": b'{"name":["a"]}',
    "an unknown field": b'{"admin":true}',
    "an unknown field, null": b'{"admin":null}',
    "NaN": b'{"name":NaN}',
    "Infinity for a time": b'{"createTime":Infinity}',
    "1e400": b'{"createTime":1e400}',
    "a wrong time": b'{"createTime":"yesterday"}',
    "invalid UTF-8": b'{"name":"\xff\xfe"}',
    "an overlong form": b'{"name":"\xc0\xaf"}',
    "half a surrogate pair": b'{"name":"\\ud800"}',
    "a wrong escape": b'{"name":"\\x41"}',
    "a control character": b'{"name":"a\nb"}',
    "a byte order mark": b'\xef\xbb\xbf{"name":"a"}',
    "a comma too many": b'{"name":"a",}',
    "single quotes": b"{'name':'a'}",
    "a comment": b'{"name":"a"/*b*/}',
    "ten thousand levels": b'{"name":' * 10_000,
    "ten thousand lists": b"[" * 10_000,
}
REQUESTS: list[tuple[str, str, int]] = [
    ("GET", "/nowhere", 404),
    ("GET", "/", 404),
    ("PUT", "/v1/users", 404),
    ("GET", "/v1/users/a/b", 404),
    ("POST", "/users.v1.UserService/GetUser", 404),
    ("POST", "/grpc.health.v1.Health/Check", 404),
    ("GET", "/v1/users/a%2Fb", 400),
    ("GET", "/v1/users/a%5Cb", 400),
    ("GET", "/v1/users/a%00b", 400),
    ("GET", "/v1/users/../../etc/passwd", 404),
    ("GET", "/v1/users?nope=1", 400),
    ("GET", "/v1/users?page_size=x", 400),
    ("GET", "/v1/users?page_size=NaN", 400),
    ("GET", "/v1/users?page_size=1e400", 400),
    ("GET", "/v1/users?page_size=99999999999", 400),
]
HEADERS: list[tuple[str, bytes, int]] = [
    ("200 headers", b"".join(b"x-%d: 1\r\n" % i for i in range(200)), 431),
    ("10 KiB", b"x-long: " + b"y" * 10_000 + b"\r\n", 431),
    ("100 KiB", b"x-long: " + b"y" * 100_000 + b"\r\n", 431),
    ("underscore", b"x_forged: 1\r\n", 400),
    ("both lengths", b"transfer-encoding: chunked\r\ncontent-length: 5\r\n", 400),
    ("two lengths", b"content-length: 5\r\ncontent-length: 6\r\n", 400),
    ("NUL", b"x-nul: a\0b\r\n", 400),
    ("a time in words", b"grpc-timeout: 1 second\r\n", 400),
    ("a time without a unit", b"grpc-timeout: 100\r\n", 400),
]


def assert_is_error(told: Any) -> None:
    assert set(told) == {"code", "message"}
    assert isinstance(told["code"], int)
    assert told["message"]
    assert "\n" not in told["message"]


@pytest.mark.parametrize("name", BODIES)
def test_body_that_does_not_fit_the_contract_is_400_and_never_reaches_an_instance(name: str, front: Front) -> None:
    calls = front.tiny[0].servicer.calls

    answer = ask(front.address, "POST", "/v1/users", BODIES[name])

    assert answer.status == 400, answer
    assert_is_error(answer.json())
    assert front.tiny[0].servicer.calls == calls


def test_refusal_names_the_field(front: Front) -> None:
    assert ask(front.address, "POST", "/v1/users", b'{"admin":1}').json()["message"] == "There is no field 'admin'."
    wants = ask(front.address, "POST", "/v1/users", b'{"name":1}').json()["message"]
    assert wants == "The field 'name' wants a text."


def test_refusal_does_not_repeat_what_was_sent(front: Front) -> None:
    for body in (b'{"secret@x.example":1}', b'{"name":secret}', b'{"createTime":"secret"}'):
        assert b"secret" not in ask(front.address, "POST", "/v1/users", body).body


@pytest.mark.parametrize(("method", "target", "status"), REQUESTS)
def test_wrong_path_verb_or_query_is_refused(method: str, target: str, status: int, front: Front) -> None:
    answer = ask(front.address, method, target)

    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert_is_error(answer.json())


@pytest.mark.parametrize(("name", "headers", "status"), HEADERS, ids=[row[0] for row in HEADERS])
def test_hostile_headers_are_refused_with_json(name: str, headers: bytes, status: int, front: Front) -> None:
    answer = send_bytes(
        front.address, b"GET /v1/users HTTP/1.1\r\nhost: " + front.address.encode() + b"\r\n" + headers + b"\r\n"
    )

    assert answer.startswith(b"HTTP/1.1 %d" % status), answer
    body = re.search(rb"\r\n\r\n(.*)", answer, re.DOTALL)
    if body is not None and body[1]:
        assert_is_error(json.loads(body[1]))


def test_long_query_is_answered_or_refused_by_envoy_and_never_by_an_instance(front: Front) -> None:
    for size in (1_000, 7_000):
        assert ask(front.address, "GET", "/v1/users?page_token=" + "a" * size).status == 200
    assert ask(front.address, "GET", "/v1/users?page_token=" + "a" * 20_000).status == 431


def test_body_over_one_mebibyte_is_413(front: Front) -> None:
    answer = ask(front.address, "POST", "/v1/users", json.dumps({"name": "x" * (1 << 20)}).encode())

    assert answer.status == 413
    assert_is_error(answer.json())


def test_body_a_little_under_one_mebibyte_passes(front: Front) -> None:
    answer = ask(front.address, "POST", "/v1/users", {"id": "large", "name": "x" * (1_000_000)})

    assert answer.status == 200, answer.body[:200]


@pytest.mark.parametrize("kind", ["text/plain", "text/xml", "multipart/form-data; boundary=x", "application/jsonx"])
def test_other_content_types_are_415(kind: str, front: Front) -> None:
    lines = ["POST /v1/users HTTP/1.1", "host: x", f"content-type: {kind}", "content-length: 2", "connection: close"]
    request = "\r\n".join([*lines, "", "{}"])

    answer = send_bytes(front.address, request.encode())

    assert answer.startswith(b"HTTP/1.1 415")
    assert_is_error(json.loads(answer.partition(b"\r\n\r\n")[2]))
