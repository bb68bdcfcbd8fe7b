"""What may be in a request."""

from __future__ import annotations

import unicodedata
from uuid import UUID

import pytest
from google.rpc.error_details_pb2 import BadRequest
from hypothesis import given
from hypothesis import strategies as st

from contract.users import REQUEST
from mesh.errors import Refusal
from users.v1.users_pb2 import User
from usersvc import rules


def _user(**fields: str) -> User:
    given = {"id": "ada", "name": "Ada", "email": "ada@example.com", **fields}
    return User(id=given["id"], name=given["name"], email=given["email"])


def _wrong(user: User) -> list[str]:
    try:
        rules.check_user(user)
    except Refusal as e:
        refusal = e
    else:
        return []
    assert (refusal.code.name, refusal.reason, refusal.domain) == ("INVALID_ARGUMENT", "INVALID_USER", "users.v1")
    (bad,) = refusal.details
    assert isinstance(bad, BadRequest)
    return [violation.field for violation in bad.field_violations]


@pytest.mark.parametrize("id", ["a", "0", "A.b_c~d-e", "x" * 64, "01890a5d-ac96-774b-bcce-b302099a8057"])
def test_ids_of_the_contract_are_taken(id: str) -> None:
    assert rules.check_id(id) == id


@pytest.mark.parametrize("id", ["", "-a", ".", "..", "a/b", "a b", "é", "x" * 65, "a\n", "a\0", "a%2Fb", "ａ", "1٢"])
def test_other_ids_are_refused(id: str) -> None:
    assert _wrong(_user(id=id)) == ["user.id"]


@pytest.mark.parametrize(
    "name",
    ["Ada Lovelace", "Nguyễn Thị Minh Khai", "李小龙", "محمد", "O'Brien-Ó", "Zoë 😀", "x" * 200, "שָׁלוֹם", "क्षत्रिय"],
)
def test_names_of_people_are_taken(name: str) -> None:
    assert _wrong(_user(name=name)) == []


@pytest.mark.parametrize("name", ["محمد\u200cرضا", "क्\u200dष", "Zoë \U0001f9d1\u200d\U0001f680"], ids=ascii)
def test_joiners_between_letters_are_spelling(name: str) -> None:
    assert _wrong(_user(name=name)) == []


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            "\u3000\u2003",
            "x" * 201,
            "a\0b",
            "a\nb",
            "a\r\nBcc: all@example.com",
            "\x1b[2J",
            "a\x7f",
            "a\x85b",
        ),
        *("\u202eevil", "a\u2066b", "a\u200bb", "\ufeffa", "a\u2028b", "a\u2029b", "\ue000", "\ufffe", "\ufdd0"),
        *("a\u200d", "\u200cb", "a\u200d\u200db", "a \u200db", "a\u200d\u202eb"),
        *("\U0010ffff", "\U000e0041", "Z" + "\u0308\u0335" * 20, "a" + "\u20dd" * 7),
    ],
    ids=ascii,
)
def test_text_that_hides_or_breaks_is_no_name(name: str) -> None:
    assert _wrong(_user(name=name)) == ["user.name"]


def test_a_name_is_kept_in_nfc_and_measured_there() -> None:
    assert rules.check_user(_user(name="e\u0301" * 200)).name == "é" * 200
    assert _wrong(_user(name="e\u0301" * 201)) == ["user.name"]


@pytest.mark.parametrize(
    "email",
    [
        *("ada@example.com", "a.b+tag@sub.example.co.uk", "o'neil@example.org", "x@y.z", "дмитрий@пример.рф"),
        *("用户@例子.公司", f"{'l' * 64}@{'d' * 63}.{'e' * 63}.{'f' * 58}.g"),
    ],
)
def test_addresses_are_taken(email: str) -> None:
    assert _wrong(_user(email=email)) == []


@pytest.mark.parametrize(
    "email",
    [
        *("", "ada", "@example.com", "ada@", "ada@example", "a@b@example.com", "ada@.com", "ada@example..com"),
        *(".a@example.com", "a.@example.com", "a..b@example.com", "a b@example.com", "ada@exam ple.com", "ada@-x.com"),
        *(
            "ada@x-.com",
            "ada@example.com\nBcc: x@y.org",
            "ada@example.com\r\n",
            "ada\0@example.com",
            "<ada@example.com>",
        ),
        *('"a b"@example.com', "ada@[127.0.0.1]", "ada@127.0.0.1", "ada@exa_mple._com", "ada,bob@example.com"),
        *(f"{'l' * 65}@example.com", f"l@{'d.' * 127}com", "ada@example.com\u202e", "a\u200db@example.com"),
    ],
    ids=ascii,
)
def test_what_is_no_address_is_refused(email: str) -> None:
    assert _wrong(_user(email=email)) == ["user.email"]


def test_every_wrong_field_is_named() -> None:
    assert _wrong(User(id="/", name="", email="no")) == ["user.id", "user.name", "user.email"]


@given(st.text())
def test_what_is_kept_is_nfc_plain_bounded_and_stable(name: str) -> None:
    if _wrong(_user(name=name)):
        return
    kept = rules.check_user(_user(name=name))
    assert unicodedata.is_normalized("NFC", kept.name)
    assert 1 <= len(kept.name) <= 200
    assert not {unicodedata.category(c) for c in kept.name} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert rules.check_user(kept) == kept


@given(st.text(max_size=30))
def test_folding_an_email_is_idempotent_and_ignores_case_and_form(text: str) -> None:
    key = rules.email_key(text)
    assert rules.email_key(key) == key
    assert rules.email_key(unicodedata.normalize("NFC", text)) == key
    assert rules.email_key(unicodedata.normalize("NFD", text)) == key


@given(st.from_regex(r"[a-zA-Z0-9]{1,10}@[a-zA-Z0-9]{1,10}\.[a-zA-Z]{2,5}", fullmatch=True))
def test_an_address_differing_in_case_is_the_same(email: str) -> None:
    assert _wrong(_user(email=email)) == []
    assert rules.email_key(email.upper()) == rules.email_key(email.lower()) == rules.email_key(email.swapcase())


@given(st.integers(-(2**31), 2**31 - 1))
def test_a_page_size_is_refused_or_from_1_to_1000(size: int) -> None:
    if size < 0:
        with pytest.raises(Refusal, match="page_size"):
            rules.check_page_size(size)
        return
    assert rules.check_page_size(size) == (50 if size == 0 else min(size, 1000))


def test_a_mask_names_what_changes() -> None:
    user = _user(email="")
    assert rules.check_mask([], user) == ("name",)
    assert rules.check_mask(["*"], user) == ("name", "email")
    assert rules.check_mask(["email", "name", "name"], user) == ("name", "email")
    assert rules.check_mask(["email"], user) == ("email",)


def test_a_mask_lets_pass_what_nobody_may_change() -> None:
    assert rules.check_mask(["id", "etag", "create_time", "name"], _user()) == ("name",)


@pytest.mark.parametrize("path", ["nmae", "name.x", "Name", "", "user.name", "* ", "name,email"])
def test_a_mask_with_an_unknown_path_is_refused(path: str) -> None:
    with pytest.raises(Refusal, match="update_mask"):
        rules.check_mask([path], _user())


@given(st.uuids())
def test_a_request_is_named_by_any_uuid_in_any_case(name: UUID) -> None:
    expected = "" if name.int == 0 else str(name)
    assert rules.check_request_id(str(name)) == rules.check_request_id(str(name).upper()) == expected


@pytest.mark.parametrize(
    "name", ["x", "123", REQUEST.replace("-", ""), f"{{{REQUEST}}}", f"{REQUEST}\n", f"urn:uuid:{REQUEST}", " "]
)
def test_a_malformed_request_id_is_refused(name: str) -> None:
    with pytest.raises(Refusal, match="request_id"):
        rules.check_request_id(name)


def test_a_batch_is_bounded_and_its_wrong_place_is_named() -> None:
    for ids in ([], ["a"] * 1001):
        with pytest.raises(Refusal, match="ids"):
            rules.check_batch(ids)
    with pytest.raises(Refusal, match=r"ids\[1\]"):
        rules.check_batch(["a", "/"])
