"""What may be in a request: pure checks that return the form to be kept, or raise a Refusal naming each wrong field.

The contract's words (users.proto) made exact. No database, no clock. What needs the present user is `usersvc.writes`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from users.v1.users_pb2 import User
from usersvc import refusals

MAX_NAME = 200
MAX_EMAIL = 254  # RFC 5321, 4.5.3.1.3: a path of 256 less its brackets
MAX_MARKS = 6  # on one letter; living scripts stack four at most, "Zalgo" text dozens
MAX_RAW = 4096  # longer text is not even normalised: that costs time
MAX_BATCH = 1000
DEFAULT_PAGE, MAX_PAGE = 50, 1000

MUTABLE = ("name", "email")
_FIELDS = frozenset(field.name for field in User.DESCRIPTOR.fields)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NIL = "00000000-0000-0000-0000-000000000000"

# Cc control and NUL, Cf format and bidirectional, Cs surrogates, Co private use, Zl and Zp separators of lines.
_FORBIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# A joiner between two letters is spelling, in Persian and in Indian scripts, and part of emoji; elsewhere it hides.
_JOINER = re.compile("(?<=[^\\s\u200c\u200d])[\u200c\u200d](?=[^\\s\u200c\u200d])")
# RFC 5322's atext; letters and digits of any script beside it (RFC 6531).
_ATEXT = r"[\w!#$%&'*+/=?^`{|}~-]+"
_LOCAL = re.compile(rf"{_ATEXT}(\.{_ATEXT})*")
_LABEL = re.compile(r"[^\W_]([\w-]{0,61}[^\W_])?")

Wrong = tuple[str, str]


def id_faults(id: str, field: str = "id") -> Iterator[Wrong]:
    """Tell what is wrong with an id."""
    if not _ID.fullmatch(id):
        yield field, "write 1 to 64 of A-Z a-z 0-9 . _ ~ -, the first a letter or digit"


def name_faults(name: str, field: str = "user.name") -> Iterator[Wrong]:
    """Tell what is wrong with a name in NFC."""
    if not name.strip():
        yield field, "write a name"
    elif len(name) > MAX_NAME:
        yield field, f"write at most {MAX_NAME} characters"
    elif not _is_plain_text(_JOINER.sub("", name)):
        yield field, "leave out control, format and bidirectional characters"
    elif _has_stacked_marks(name):
        yield field, f"write at most {MAX_MARKS} combining marks in a row"


def email_faults(email: str, field: str = "user.email") -> Iterator[Wrong]:
    """Tell what is wrong with an address in NFC. Whether it can be delivered to only a letter can tell."""
    local, _, domain = email.rpartition("@")
    labels = domain.split(".")
    if not email:
        yield field, "write an email address"
    elif len(email) > MAX_EMAIL or len(local) > 64:
        yield field, f"write at most {MAX_EMAIL} characters, 64 before the @"
    elif not _is_address(local, labels) or not _is_plain_text(email) or _has_stacked_marks(email):
        yield field, "write an address such as ada@example.com"


def _is_address(local: str, labels: Sequence[str]) -> bool:
    if not _LOCAL.fullmatch(local) or len(labels) < 2 or labels[-1].isdigit():
        return False
    return all(_LABEL.fullmatch(label) for label in labels)


def _is_plain_text(text: str) -> bool:
    if text.isascii():
        return text.isprintable()
    # A noncharacter (U+FFFE and the like) is never text, whatever version of Unicode this Python knows.
    return not any(
        unicodedata.category(c) in _FORBIDDEN or ord(c) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(c) <= 0xFDEF for c in text
    )


def _has_stacked_marks(text: str) -> bool:
    if text.isascii():
        return False
    marks = 0
    for c in text:
        marks = marks + 1 if unicodedata.category(c) in ("Mn", "Me") else 0
        if marks > MAX_MARKS:
            return True
    return False


def normal(text: str) -> str:
    """Return the text in NFC. What is far too long stays as it is and is refused by its length."""
    return text if text.isascii() or len(text) > MAX_RAW else unicodedata.normalize("NFC", text)


def email_key(email: str) -> str:
    """Fold an email to the form that is unique: whatever the case of its letters. Idempotent."""
    # Unicode 3.13, D145: decomposed before folding, because some marks fold in another order than they compose.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", email).casefold())


def check_id(id: str, field: str = "id") -> str:
    """Return an id that is asked for."""
    if not _ID.fullmatch(id):
        raise refusals.invalid(id_faults(id, field))
    return id


def check_user(user: User) -> User:
    """Return the user in the form to be kept (NFC); raise a Refusal that names all that is wrong."""
    kept = User()
    kept.CopyFrom(user)
    kept.name, kept.email = normal(user.name), normal(user.email)
    wrong = [*id_faults(kept.id, "user.id"), *name_faults(kept.name), *email_faults(kept.email)]
    if wrong:
        raise refusals.invalid(wrong)
    return kept


def check_values(user: User, fields: Iterable[str]) -> None:
    """Refuse new values that no user could have, before the database is asked. The merged user is checked later."""
    faults = {"name": name_faults, "email": email_faults}
    wrong = [fault for field in fields for fault in faults[field](normal(getattr(user, field)))]
    if wrong:
        raise refusals.invalid(wrong)


def check_mask(paths: Iterable[str], user: User) -> tuple[str, ...]:
    """Return the fields to change: those of the mask, every one that is set without a mask, all of them for "*".

    Fields that nobody may change are let pass without effect (AIP-203); the transcoder names all that a body has.
    """
    asked = set(paths)
    if not asked:
        return tuple(field for field in MUTABLE if getattr(user, field))
    if asked == {"*"}:
        return MUTABLE
    unknown = sorted(asked - _FIELDS)
    if unknown:
        raise refusals.invalid_request("update_mask", 'name fields of "name" and "email", or "*" alone')
    return tuple(field for field in MUTABLE if field in asked)


def check_page_size(size: int) -> int:
    """Return how many users a page has at most."""
    if size < 0:
        raise refusals.invalid_request("page_size", "write 0 or more; 0 means 50")
    return min(size, MAX_PAGE) or DEFAULT_PAGE


def check_batch(ids: Sequence[str]) -> Sequence[str]:
    """Return the ids of a batch."""
    if not 1 <= len(ids) <= MAX_BATCH:
        raise refusals.invalid_request("ids", f"name 1 to {MAX_BATCH} users")
    for place, id in enumerate(ids):
        check_id(id, f"ids[{place}]")
    return ids


def check_request_id(request_id: str) -> str:
    """Return the request's name in lower case, or "" where it has none: empty, or the nil UUID (AIP-155)."""
    name = request_id.lower()
    if name in ("", _NIL):
        return ""
    if not _UUID.fullmatch(name):
        raise refusals.invalid_request("request_id", "write a UUID, e.g. 01890a5d-ac96-774b-bcce-b302099a8057")
    return name
