"""Users in a dictionary, for unit tests. Never to be served: behind a round robin of several it would lose reads."""

from __future__ import annotations

import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from mesh.clock import Clock
from mesh.wallclock import CLOCK
from users.v1.users_pb2 import User
from usersvc import rules
from usersvc.store import Change, ChangesForgotten, Retention
from usersvc.writes import Decision, Facts, Recorded, Write, decide


class MemoryStore:
    """Users in this process, gone with it. One loop owns it; nothing in it waits."""

    def __init__(self, *, clock: Clock = CLOCK, retention: Retention = Retention()) -> None:  # noqa: B008  frozen value
        self._clock = clock
        self._retention = retention
        self._users: dict[str, User] = {}
        self._holders: dict[str, str] = {}
        self._requests: dict[str, tuple[float, Recorded]] = {}
        self._changes: list[tuple[float, Change]] = []
        self._forgotten = 0  # sequence of the last change that was forgotten
        self._head = 0
        self.key = secrets.token_bytes(32)

    async def get(self, id: str) -> User | None:
        """Return the user of this id, or None."""
        return _copy(self._users[id]) if id in self._users else None

    async def get_many(self, ids: Sequence[str]) -> Mapping[str, User]:
        """Return those of the users that exist."""
        return {id: _copy(self._users[id]) for id in ids if id in self._users}

    async def page(self, after: str, limit: int) -> Sequence[User]:
        """Return the first users after an id."""
        ids = sorted(self._users)
        start = bisect_right(ids, after)
        return [_copy(self._users[id]) for id in ids[start : start + limit]]

    async def write(self, write: Write) -> bytes:
        """Decide and do a write."""
        now = self._clock.time()
        facts = Facts(self._recorded(write, now), self._users.get(write.id), self._holders.get(write.email_key, ""))
        decision = decide(write, facts, int(now * 1_000_000))
        self._carry_out(write, decision, now)
        return decision.answer

    def _recorded(self, write: Write, now: float) -> Recorded | None:
        expiry, recorded = self._requests.get(write.named.request_id if write.named else "", (0.0, None))
        return recorded if expiry > now else None

    def _carry_out(self, write: Write, decision: Decision, now: float) -> None:
        if decision.record and write.named:
            self._requests[write.named.request_id] = (now + self._retention.requests, decision.record)
        if decision.happened is None:
            return
        user = decision.user
        old = self._users.pop(user.id, None)
        if old:
            del self._holders[rules.email_key(old.email)]
        if decision.happened.name != "DELETED":
            self._users[user.id] = user
            self._holders[rules.email_key(user.email)] = user.id
        self._head += 1
        self._changes.append((now, Change(self._head, decision.happened, user)))

    async def head(self) -> int:
        """Return the sequence of the last change."""
        return self._head

    async def changes(self, after: int, limit: int) -> Sequence[Change]:
        """Return the first changes after a sequence."""
        if not self._forgotten <= after <= self._head:
            raise ChangesForgotten("the changes asked for are gone")
        start = after - self._forgotten
        return [change for _, change in self._changes[start : start + limit]]

    async def prune(self) -> None:
        """Forget what is past its retention."""
        now = self._clock.time()
        self._requests = {id: kept for id, kept in self._requests.items() if kept[0] > now}
        old = sum(1 for when, _ in self._changes if when <= now - self._retention.changes)
        gone = max(old, len(self._changes) - self._retention.change_rows)
        if gone > 0:
            self._forgotten = self._changes[gone - 1][1].sequence
            del self._changes[:gone]

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def _copy(user: User) -> User:
    copy = User()
    copy.CopyFrom(user)
    return copy
