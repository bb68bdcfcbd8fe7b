"""The port to where registrations live: keys under prefixes, leases, and a watch. Two implementations pass one contract
suite (`tests/contract/store.py`): `mesh.etcd` (real) and `mesh.memory` (for examples and unit tests).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's present value. `lease` is 0 where it lives for ever; revisions count the store's changes."""

    key: str
    value: bytes
    lease: int = 0
    mod_revision: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything under a prefix at one revision."""

    entries: Mapping[str, Entry]
    revision: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Some keys under a watched prefix have changed. A value of None: the key is gone.

    `revision` is the store's; an empty `changes` is a sign of life (etcd's progress notification).
    """

    changes: Mapping[str, Entry | None]
    revision: int


class Lease(Protocol):
    """A promise to be alive. Keys put under it vanish when it ends."""

    @property
    def id(self) -> int:
        """The store's number of the lease."""
        ...

    @property
    def ttl(self) -> float:
        """Seconds without a sign of life after which it ends, as granted."""
        ...

    async def lost(self) -> None:
        """Return when the lease has ended without our asking: expired, or revoked by somebody."""
        ...

    async def revoke(self) -> None:
        """End the lease and delete its keys. Silent if it has ended already."""
        ...


class Store(Protocol):
    """Where registrations live.

    Every method raises StoreUnavailable if no member answers in time, StoreDenied if we are not allowed.
    """

    async def get(self, key: str) -> Entry | None:
        """Return the key's entry, or None. Linearizable."""
        ...

    async def list(self, prefix: str) -> Listing:
        """Return everything under a prefix. Linearizable."""
        ...

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        """Set a key and return the revision. Raises LeaseLost if the lease has ended."""
        ...

    async def put_if_absent(self, key: str, value: bytes, lease: Lease | None = None) -> bool:
        """Set a key only if there is none; return whether it was set. Raises LeaseLost if the lease has ended."""
        ...

    async def delete(self, key: str) -> bool:
        """Delete a key; return whether there was one."""
        ...

    async def lease(self, ttl: float) -> Lease:
        """Grant a lease and keep it alive, until it is revoked, lost or the store is closed."""
        ...

    def watch(self, prefix: str, after: int) -> AsyncIterator[Changed]:
        """Tell every change under a prefix that came after a revision, in order, none left out, for ever.

        Breaks, restarts and silent members are survived inside, by resuming from the last revision told. Raises
        Compacted if that revision is gone: list again. While the store is away the iterator waits; `connected` tells.
        """
        ...

    @property
    def connected(self) -> bool:
        """Whether the last exchange with the store went well."""
        ...

    async def close(self) -> None:
        """Let go of every connection. Leases are left to end by themselves."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
