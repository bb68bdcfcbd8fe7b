"""What a write does, decided from facts: a machine without a database, the same for every store.

A store runs a write inside one transaction, in three steps: it reads the `Facts` that `wanted` names, asks `decide`,
and carries the `Decision` out. `decide` raises a Refusal before anything was written, so there is nothing to undo.

A request that is named by a request_id (AIP-155) leaves its answer in the same transaction as its write. Whoever
repeats it, at whichever instance, finds either nothing or the answer, never half of it. Refusals are not kept: a
request that was refused may be repeated and succeed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from users.v1.users_pb2 import User
from usersvc import refusals, rules
from usersvc.store import Happened


@dataclass(frozen=True, slots=True)
class Named:
    """The name of a request and what tells its content from another's."""

    request_id: str
    method: str
    fingerprint: bytes

    @classmethod
    def of(cls, request_id: str, method: str, request: Message) -> Named | None:
        """Name a request whose request_id was checked; None where it has none."""
        if not request_id:
            return None
        content = type(request)()
        content.CopyFrom(request)
        content.ClearField("request_id")
        return cls(request_id, method, hashlib.sha256(content.SerializeToString(deterministic=True)).digest())


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is kept of a named request that was answered."""

    method: str
    fingerprint: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database knows before a write.

    recorded: the earlier answer to this request, unless expired.
    present: the user of the write's id.
    holder: id of the user who has the write's email_key, or "".
    """

    recorded: Recorded | None = None
    present: User | None = None
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, all or nothing. Without `happened` nothing is: the answer is given again."""

    answer: bytes
    happened: Happened | None = None
    user: User = field(default_factory=User)
    """The user to keep, or the last state of the one to delete."""
    record: Recorded | None = None


class Write(Protocol):
    """A change that is asked for. `id`, `email_key` ("" for none) and `named` say which facts it needs."""

    @property
    def id(self) -> str: ...  # noqa: D102  told above
    @property
    def email_key(self) -> str: ...  # noqa: D102  told above
    @property
    def named(self) -> Named | None: ...  # noqa: D102  told above

    def apply(self, facts: Facts, now: int) -> tuple[Happened | None, User, bytes]:
        """Return what happens, to which user, and the answer. `now` is in microseconds since 1970."""
        ...


def decide(write: Write, facts: Facts, now: int) -> Decision:
    """Decide what a write does at this moment; raise the Refusal if it may not be done."""
    named = write.named
    if named and facts.recorded:
        if (facts.recorded.method, facts.recorded.fingerprint) != (named.method, named.fingerprint):
            raise refusals.request_id_reused()
        return Decision(facts.recorded.answer)
    happened, user, answer = write.apply(facts, now)
    record = Recorded(named.method, named.fingerprint, answer) if named else None
    return Decision(answer, happened, user, record)


@dataclass(frozen=True, slots=True)
class Create:
    """A new user; its fields were checked by `rules.check_user`."""

    user: User
    named: Named | None = None

    @property
    def id(self) -> str:
        """The new user's id."""
        return self.user.id

    @property
    def email_key(self) -> str:
        """The email that must be free."""
        return rules.email_key(self.user.email)

    def apply(self, facts: Facts, now: int) -> tuple[Happened | None, User, bytes]:
        """Make the user, unless the id or the email is taken."""
        if facts.present:
            raise refusals.user_already_exists(self.id)
        if facts.holder:
            raise refusals.email_taken()
        user = User(id=self.user.id, name=self.user.name, email=self.user.email)
        user.create_time.CopyFrom(timestamp(now))
        _touch(user, now)
        return Happened.CREATED, user, user.SerializeToString()


@dataclass(frozen=True, slots=True)
class Update:
    """New values for some fields of a user. The merged user is checked, not the values alone."""

    user: User
    fields: tuple[str, ...]
    named: Named | None = None

    @property
    def id(self) -> str:
        """The user's id."""
        return self.user.id

    @property
    def email_key(self) -> str:
        """The email that must be free or the user's own, if it is to change."""
        return rules.email_key(rules.normal(self.user.email)) if "email" in self.fields else ""

    def apply(self, facts: Facts, now: int) -> tuple[Happened | None, User, bytes]:
        """Change the user, unless it is gone, has changed since, or would be wrong."""
        present = _present(facts, self.id, self.user.etag)
        merged = User()
        merged.CopyFrom(present)
        for name in self.fields:
            setattr(merged, name, getattr(self.user, name))
        merged = rules.check_user(merged)
        if facts.holder not in ("", self.id):
            raise refusals.email_taken()
        if merged == present:  # nothing to change, nothing to tell watchers
            return None, present, present.SerializeToString()
        _touch(merged, max(now, microseconds(present.update_time) + 1))
        return Happened.UPDATED, merged, merged.SerializeToString()


@dataclass(frozen=True, slots=True)
class Delete:
    """The end of a user."""

    id: str
    etag: str = ""
    named: Named | None = None
    email_key: str = ""

    def apply(self, facts: Facts, now: int) -> tuple[Happened | None, User, bytes]:
        """Delete the user, unless it is gone or has changed since. The answer is an Empty: no bytes."""
        return Happened.DELETED, _present(facts, self.id, self.etag), b""


def _present(facts: Facts, id: str, etag: str) -> User:
    if facts.present is None:
        raise refusals.user_not_found(id)
    if etag and etag != facts.present.etag:
        raise refusals.stale_etag(id)
    return facts.present


def _touch(user: User, now: int) -> None:
    """Set the time of the change, and an etag that no other state of any user has."""
    user.update_time.CopyFrom(timestamp(now))
    before = user.etag.encode()
    user.etag = ""
    state = user.SerializeToString(deterministic=True)
    user.etag = hashlib.blake2b(before + state, digest_size=12).hexdigest()


def timestamp(microseconds: int) -> Timestamp:
    """Make the contract's form of a moment."""
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def microseconds(moment: Timestamp) -> int:
    """Return a moment as it is kept."""
    return moment.seconds * 1_000_000 + moment.nanos // 1000
