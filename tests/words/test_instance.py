"""Names that become keys in the store and parts of URLs: what passes is safe there; the rest is told in a sentence."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.errors import InvalidName
from mesh.instance import (
    AttemptRecord,
    Endpoint,
    Instance,
    State,
    View,
    check_instance_id,
    check_service_name,
)
from mesh.network import Network

HOSTILE = [
    "",
    " ",
    "/",
    "..",
    "a/b",
    "../a",
    "a..b",
    ".a",
    "a.",
    "a b",
    "a\n",
    "a\x00",
    "a%2Fb",
    "é",
    "1a",
    "a" * 65,
    "a-b",
]


@pytest.mark.parametrize("name", ["a", "users.v1.UserService", "_x._Y9", ".".join(["a" * 64] * 3), "A.b.C1"])
def test_proto_full_names_are_service_names(name: str) -> None:
    assert check_service_name(name) == name


@pytest.mark.parametrize("name", [*HOSTILE, ".".join(["a"] * 17), ".".join(["a" * 64] * 4)])
def test_nothing_else_is_a_service_name(name: str) -> None:
    with pytest.raises(InvalidName, match="write a proto full name"):
        check_service_name(name)


@given(st.text())
@example("a\n")
@example("a\u0660")
def test_a_service_name_that_passes_can_be_part_of_a_key_and_of_a_path(name: str) -> None:
    try:
        check_service_name(name)
    except InvalidName as e:
        told = str(e)
    else:
        assert re.fullmatch(r"[A-Za-z0-9_.]{1,255}", name, re.ASCII)
        assert ".." not in name
        return
    assert len(told) < 1200, "the sentence stays short whatever was sent"
    assert told.isprintable()


@pytest.mark.parametrize("name", ["a", "users-1", "1", "A._~-", "a" * 128, "10.0.0.1-50051"])
def test_instance_ids(name: str) -> None:
    assert check_instance_id(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".", "..", "~", "a/b", "a b", "a\n", "é", "a" * 129, "a:b", "a\x7f"])
def test_what_is_no_instance_id(name: str) -> None:
    with pytest.raises(InvalidName, match="no instance id"):
        check_instance_id(name)


@given(st.text())
def test_an_instance_id_that_passes_is_one_safe_segment(name: str) -> None:
    try:
        check_instance_id(name)
    except InvalidName:
        return
    assert re.fullmatch(r"[A-Za-z0-9._~-]{1,128}", name, re.ASCII)
    assert name not in (".", "..")


@pytest.mark.parametrize("text", ["127.0.0.1:1", "localhost:65535", "[::1]:80", "users-1.internal:50051"])
def test_addresses_come_back_as_they_were_read(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


NO_ADDRESS = """
:80 host host: host:0 host:65536 host:99999 host:-1 host:+1 host:８０ ::1:80 [::1:80 a/b:1 a@b:1 -a:1 a-:1 a_b:1
http://host:80 unix:/x
"""


@pytest.mark.parametrize("text", ["", "host:8 0", "host:80\n", "a" * 254 + ":1", *NO_ADDRESS.split()])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidName, match="write host:port"):
        Endpoint.parse(text)


@given(st.text())
def test_reading_an_address_gives_one_or_says_that_it_is_none(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except InvalidName:
        return
    assert 1 <= endpoint.port <= 65535
    assert Endpoint.parse(str(endpoint)) == endpoint


def instance(name: str, state: State = State.READY) -> Instance:
    return Instance("users.v1.UserService", name, Endpoint("127.0.0.1", 1), state=state)


@given(st.permutations([instance("a"), instance("b", State.DRAINING), instance("c", State.PAUSED), instance("d")]))
def test_a_view_does_not_depend_on_the_order_of_news(instances: list[Instance]) -> None:
    view = View.of("users.v1.UserService", instances)
    assert [i.id for i in view.instances] == ["a", "b", "c", "d"]
    assert [i.id for i in view.ready] == ["a", "d"]
    assert view == View.of("users.v1.UserService", reversed(instances))


def test_a_view_that_nobody_has_read_says_nothing() -> None:
    unread, empty = View("users.v1.UserService"), View.of("users.v1.UserService", [])
    assert not unread.known
    assert empty.known
    assert unread != empty


def test_another_state_is_another_value() -> None:
    before = instance("a")
    assert before.with_state(State.DRAINING).state is State.DRAINING
    assert before.state is State.READY


@pytest.mark.parametrize(
    ("network", "address", "inside"),
    [
        ("10.0.0.0/8", "10.1.2.3:1", True),
        ("10.0.0.0/8", "11.1.2.3:1", False),
        ("10.0.0.0/8:50000-50999", "10.1.2.3:50999", True),
        ("10.0.0.0/8:50000-50999", "10.1.2.3:51000", False),
        ("10.0.0.0/8:50051", "10.1.2.3:50051", True),
        ("10.0.0.0/8", "[::1]:1", False),
        ("::1/128", "[::1]:1", True),
        ("0.0.0.0/0", "localhost:1", False),
    ],
)
def test_an_address_is_in_a_network_or_not_and_a_name_never_is(network: str, address: str, inside: bool) -> None:
    assert (Endpoint.parse(address) in Network.parse(network)) is inside


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.0/8:50000-50999", "::1/128"])
def test_networks_come_back_as_they_were_read(text: str) -> None:
    assert str(Network.parse(text)) == text


@pytest.mark.parametrize("text", ["10.0.0.1/8", "ten", "10.0.0.0/8:0", "10.0.0.0/8:2-1", "10.0.0.0/8:70000", "::1/129"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(InvalidName):
        Network.parse(text)


def test_an_attempt_is_told_in_a_few_words() -> None:
    assert str(AttemptRecord("10.0.0.1:1", "UNAVAILABLE", 12.4)) == "10.0.0.1:1 UNAVAILABLE 12 ms"
    assert str(AttemptRecord("", "UNAVAILABLE", 0.0)) == "no endpoint UNAVAILABLE 0 ms"
