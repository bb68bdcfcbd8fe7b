"""Tokens and ids."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usersvc.tokens import BadToken, Tokens
from usersvc.uuid7 import uuid7

TOKENS = Tokens(b"k" * 32)


@given(st.text(), st.text())
def test_a_token_gives_its_place_back_for_its_request(request: str, place: str) -> None:
    assert TOKENS.open(request, TOKENS.seal(request, place)) == place


@given(st.text(max_size=20), st.data())
def test_a_token_with_any_letter_changed_is_refused(place: str, data: st.DataObject) -> None:
    token = TOKENS.seal("ListUsers", place)
    at = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCXYZabcxyz019-_+/=é\0 ").filter(lambda c: c != token[at]))
    with pytest.raises(BadToken):
        TOKENS.open("ListUsers", token[:at] + letter + token[at + 1 :])


@given(st.text(max_size=60))
def test_a_made_up_token_is_refused(token: str) -> None:
    with pytest.raises(BadToken):
        TOKENS.open("ListUsers", token)


def test_a_token_of_another_request_or_database_is_refused() -> None:
    for foreign in (
        TOKENS.seal("WatchUsers", "7"),
        Tokens(b"o" * 32).seal("ListUsers", "7"),
        TOKENS.seal("List", "Users7"),
    ):
        with pytest.raises(BadToken):
            TOKENS.open("ListUsers", foreign)


@given(st.integers(0, 2**48 - 1), st.integers())
def test_an_id_is_a_uuid_of_version_7_that_tells_its_moment(milliseconds: int, seed: int) -> None:
    id = UUID(uuid7(milliseconds, random.Random(seed)))
    assert (id.version, id.variant) == (7, "specified in RFC 4122")
    assert id.int >> 80 == milliseconds


@given(st.lists(st.integers(0, 2**48 - 1), min_size=2, unique=True))
def test_ids_sort_as_their_moments_do(moments: list[int]) -> None:
    dice = random.Random(1)
    assert sorted(moments) == [UUID(id).int >> 80 for id in sorted(uuid7(moment, dice) for moment in moments)]


def test_ids_of_one_moment_differ() -> None:
    dice = random.Random(1)
    assert len({uuid7(1, dice) for _ in range(10_000)}) == 10_000
