"""The form in the store: ours, that of stock Go clients, and whatever else somebody may have put there."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import RecordError
from mesh.instance import Endpoint, Instance, State
from mesh.registry import record

KEY = "mesh/services/users.v1.UserService/u1"


def full() -> Instance:
    return Instance(
        service="users.v1.UserService",
        id="u1",
        endpoint=Endpoint("10.0.0.1", 5000),
        zone="a",
        version="1.2",
        weight=7,
        state=State.DRAINING,
        started=1700000000.5,
        contract="ab" * 32,
    )


def test_what_is_written_reads_the_same() -> None:
    assert record.instance_key("mesh", full()) == KEY
    assert record.decode(KEY, record.encode(full()), "mesh") == full()


def test_the_record_is_in_etcds_naming_format() -> None:
    written = json.loads(record.encode(full()))
    assert (written["Op"], written["Addr"]) == (0, "10.0.0.1:5000")
    assert written["Metadata"]["state"] == "draining"


# In Go's naming package `Metadata` is an interface{}: it may be missing, or anything. Only an object can be ours.
@pytest.mark.parametrize("metadata", [None, "any", 7, [], ["eu", 7], {}, {"region": "eu"}])
def test_a_record_of_a_stock_go_client_is_an_instance(metadata: object) -> None:
    value = json.dumps({"Op": 0, "Addr": "10.0.0.1:5000", "Metadata": metadata}).encode()
    expected = Instance("users.v1.UserService", "u1", Endpoint("10.0.0.1", 5000))
    assert record.decode(KEY, value, "mesh") == expected


POISON = [
    b"",
    b"null",
    b"[]",
    b"not json",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"Op":0}',
    b'{"Addr":7}',
    b'{"Addr":"10.0.0.1:99999"}',
    b'{"Addr":"10.0.0.1"}',
    b'{"Addr":"10.0.0.1:80\\r\\nx: y"}',
    b'{"Addr":"unix:/etc/passwd"}',
    b'{"Addr":"10.0.0.1:80","Metadata":{"weight":0}}',
    b'{"Addr":"10.0.0.1:80","Metadata":{"weight":true}}',
    b'{"Addr":"10.0.0.1:80","Metadata":{"weight":1e400}}',
    b'{"Addr":"10.0.0.1:80","Metadata":{"started":NaN}}',
    b'{"Addr":"10.0.0.1:80","Metadata":{"weight":"heavy"}}',
    b'{"Addr":"10.0.0.1:80","Metadata":{"state":"exploded"}}',  # of a later version, perhaps
    b'{"id":"u1","name":"users","version":"v2","endpoints":["grpc://10.0.0.1:80"]}',  # Kratos's form
    b'{"Addr":"10.0.0.1:80","Metadata":{"zone":["a"]}}',
    b'{"Addr":"10.0.0.1:80","Metadata":{"zone":"\\u202e"}}',
    b'{"Addr":"10.0.0.1:80"}' + b" " * 70_000,
]


@pytest.mark.parametrize("value", POISON, ids=lambda v: repr(v[:60]))
def test_poison_is_a_record_error(value: bytes) -> None:
    with pytest.raises(RecordError):
        record.decode(KEY, value, "mesh")


@pytest.mark.parametrize(
    "key",
    [
        "mesh/services/users.v1.UserService",
        "mesh/services/users.v1.UserService/",
        "mesh/services//u1",
        "mesh/services/../u1",
        "mesh/services/users.v1.UserService/a/b",
        "mesh/services/users.v1.UserService/..",
        "other/services/users.v1.UserService/u1",
        "mesh/services/users.v1.UserService/\x00",
    ],
)
def test_a_key_that_names_no_instance_is_a_record_error(key: str) -> None:
    with pytest.raises(RecordError):
        record.decode(key, record.encode(full()), "mesh")


@given(st.binary(max_size=300) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(repr))
def test_anything_at_all_is_an_instance_or_a_record_error(value: bytes | str) -> None:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
    with contextlib.suppress(RecordError):
        record.decode(KEY, data, "mesh")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {"Addr": st.just("10.0.0.1:80") | json_values},
        optional={
            "Metadata": json_values
            | st.fixed_dictionaries(
                {},
                optional=dict.fromkeys(
                    ("id", "zone", "version", "weight", "state", "started", "contract"), json_values
                ),
            )
        },
    )
)
def test_any_types_are_an_instance_or_a_record_error(fields: dict[str, object]) -> None:
    with contextlib.suppress(RecordError):
        record.decode(KEY, json.dumps(fields).encode(), "mesh")
