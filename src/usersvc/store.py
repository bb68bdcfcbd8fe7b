"""The port to where users are kept, and the values that pass through it.

Three implementations pass one contract suite (tests/usersvc/contract.py): `usersvc.sqlite`, `usersvc.postgres` and
`usersvc.memory`. What a write does is decided by `usersvc.writes` alone, so the three cannot differ in it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mesh.errors import MeshError
from users.v1.users_pb2 import User

if TYPE_CHECKING:
    from usersvc.writes import Write


class StoreFailed(MeshError):
    """The database did not do what was asked. The text is for the log of the service, never for its callers."""


class StoreUnavailable(StoreFailed):
    """The database is away, locked or broken now. Worth another try."""


class StoreFull(StoreFailed):
    """The database has no room for more."""


class OpenFailed(MeshError):
    """The database could not be opened. One sentence for whoever starts the service; it tells what to do."""


class ChangesForgotten(MeshError):
    """The change asked for is too old, or of another history: list the users, then watch anew."""


class Happened(enum.IntEnum):
    """What happened to a user; the numbers of users.v1.WatchUsersResponse.Change, kept in the database."""

    CREATED = 1
    UPDATED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was committed. Sequences grow in the order of commits; some may be left out."""

    sequence: int
    happened: Happened
    user: User


@dataclass(frozen=True, slots=True)
class Retention:
    """How long history is kept. Seconds and rows.

    requests: 24 hours is promised by the contract.
    changes, change_rows: a watcher that was away for longer has to list again; a row is some 300 bytes.
    """

    requests: float = 24 * 3600.0
    changes: float = 7 * 24 * 3600.0
    change_rows: int = 100_000


class UserStore(Protocol):
    """Where users are kept. Every method raises StoreUnavailable or StoreFull if the database cannot do it.

    Cancelling a write leaves it done or not done, never half done.
    """

    @property
    def key(self) -> bytes:
        """A secret shared by every instance on the same database, for tokens."""
        ...

    async def get(self, id: str) -> User | None:
        """Return the user of this id, or None."""
        ...

    async def get_many(self, ids: Sequence[str]) -> Mapping[str, User]:
        """Return those of the users that exist, by id, all as of one moment."""
        ...

    async def page(self, after: str, limit: int) -> Sequence[User]:
        """Return the first users whose ids come after this one, in the order of the ids' bytes."""
        ...

    async def write(self, write: Write) -> bytes:
        """Do a write in one durable transaction and return the serialized answer; raise the Refusal it decides on."""
        ...

    async def head(self) -> int:
        """Return the sequence of the last change committed, 0 if there was none."""
        ...

    async def changes(self, after: int, limit: int) -> Sequence[Change]:
        """Return the first changes after a sequence, in order; raise ChangesForgotten if one of them is gone."""
        ...

    async def prune(self) -> None:
        """Forget the requests and changes that are past their retention."""
        ...

    async def close(self) -> None:
        """Finish the writes that were begun, and let go of the database."""
        ...
