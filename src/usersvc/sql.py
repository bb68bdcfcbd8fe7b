"""The statements that SQLite and PostgreSQL share, and how rows become values. Placeholders are ?1, ?2 …

asyncpg writes them $1, $2: `dollars` translates. Everything from a caller travels as a parameter, never in the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from users.v1.users_pb2 import User
from usersvc import rules
from usersvc.store import Change, Happened, Retention
from usersvc.writes import Decision, Facts, Recorded, Write, microseconds, timestamp

_COLUMNS = "id, name, email, created, updated, etag"

GET = f"SELECT {_COLUMNS} FROM users WHERE id = ?1"  # noqa: S608  constants only, here and below
PAGE = f"SELECT {_COLUMNS} FROM users WHERE id > ?1 ORDER BY id LIMIT ?2"  # noqa: S608  constants only
MANY_SQLITE = f"SELECT {_COLUMNS} FROM users WHERE id IN (SELECT value FROM json_each(?1))"  # noqa: S608  constants only
MANY_POSTGRES = f"SELECT {_COLUMNS} FROM users WHERE id = ANY($1)"  # noqa: S608  constants only

# All that a write has to know, in one statement: one round trip, and one snapshot.
FACTS = """
SELECT u.id, u.name, u.email, u.created, u.updated, u.etag, h.id, r.method, r.fingerprint, r.answer
FROM (SELECT 1 AS one) AS one
LEFT JOIN users AS u ON u.id = ?1
LEFT JOIN users AS h ON h.email_key = ?2
LEFT JOIN requests AS r ON r.request_id = ?3 AND r.expires > ?4"""

SAVE = """
INSERT INTO users (id, name, email, email_key, created, updated, etag) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email, email_key = excluded.email_key,
  updated = excluded.updated, etag = excluded.etag"""
DELETE = "DELETE FROM users WHERE id = ?1"
RECORD = """
INSERT INTO requests (request_id, method, fingerprint, answer, expires) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (request_id) DO UPDATE SET method = excluded.method, fingerprint = excluded.fingerprint,
  answer = excluded.answer, expires = excluded.expires"""
LOG = "INSERT INTO changes (at, happened, state) VALUES (?1, ?2, ?3)"

TOKEN_KEY = "SELECT token_key FROM service"  # noqa: S105  a statement, no secret
HEAD = "SELECT coalesce((SELECT max(sequence) FROM changes), (SELECT forgotten FROM service))"
CHANGES = "SELECT sequence, happened, state FROM changes WHERE sequence > ?1 ORDER BY sequence LIMIT ?2"
FORGOTTEN = "SELECT forgotten FROM service"

# History goes in portions, so that no caller waits long behind it.
PORTION = 2000
PRUNE_REQUESTS = f"""
DELETE FROM requests WHERE request_id IN
  (SELECT request_id FROM requests WHERE expires <= ?1 LIMIT {PORTION})"""  # noqa: S608  a constant
FORGET = """
UPDATE service SET forgotten = (SELECT max(last) FROM (
  SELECT forgotten AS last FROM service
  UNION ALL SELECT max(sequence) FROM changes WHERE at <= ?1
  UNION ALL SELECT max(sequence) - ?2 FROM changes) AS candidates)"""
PRUNE_CHANGES = f"""
DELETE FROM changes WHERE sequence IN
  (SELECT sequence FROM changes WHERE sequence <= (SELECT forgotten FROM service) ORDER BY sequence LIMIT {PORTION})"""  # noqa: S608  a constant

Statement = tuple[str, tuple[Any, ...]]


def dollars(statement: str) -> str:
    """Write a statement's placeholders as PostgreSQL does."""
    return statement.replace("?", "$")


def user_of(row: Sequence[Any]) -> User:
    """Make the user of a row."""
    return User(
        id=row[0], name=row[1], email=row[2], create_time=timestamp(row[3]), update_time=timestamp(row[4]), etag=row[5]
    )


def change_of(row: Sequence[Any]) -> Change:
    """Make the change of a row."""
    return Change(row[0], Happened(row[1]), User.FromString(row[2]))


def wanted(write: Write, now: int) -> Statement:
    """Tell how to read the facts of a write."""
    return FACTS, (write.id, write.email_key, write.named.request_id if write.named else "", now)


def facts_of(row: Sequence[Any]) -> Facts:
    """Make the facts of the row that `wanted` asked for."""
    recorded = Recorded(row[7], row[8], row[9]) if row[7] is not None else None
    return Facts(recorded, user_of(row) if row[0] is not None else None, row[6] or "")


def effects(write: Write, decision: Decision, now: int, retention: Retention) -> Iterator[Statement]:
    """Tell how to carry a decision out. The log comes last: on PostgreSQL a lock is held from there to the commit."""
    user = decision.user
    if decision.happened is Happened.DELETED:
        yield DELETE, (user.id,)
    elif decision.happened is not None:
        created, updated = microseconds(user.create_time), microseconds(user.update_time)
        yield SAVE, (user.id, user.name, user.email, rules.email_key(user.email), created, updated, user.etag)
    if decision.record is not None and write.named is not None:
        kept = decision.record
        expires = now + int(retention.requests * 1_000_000)
        yield RECORD, (write.named.request_id, kept.method, kept.fingerprint, kept.answer, expires)
    if decision.happened is not None:
        yield LOG, (now, int(decision.happened), user.SerializeToString())
