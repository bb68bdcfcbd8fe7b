"""etcd as a `mesh.store.Store`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from mesh.clock import Clock, Dice
from mesh.etcd import wire
from mesh.etcd.leases import EtcdLease, LeaseKeeper
from mesh.etcd.members import Members
from mesh.etcd.session import Session
from mesh.etcd.watching import watch
from mesh.instance import Endpoint
from mesh.settings import Settings, TLSFiles
from mesh.store import Changed, Entry, Lease, Listing
from mesh.wallclock import CLOCK, DICE


class EtcdStore:
    """Registrations in etcd. Making one does no I/O; use it from one event loop.

    endpoints: the members, tried in turn.
    user, password: where etcd asks for them.
    tls: files where etcd speaks TLS; read again when they change.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        user: str = "",
        password: str = "",
        tls: TLSFiles | None = None,
        clock: Clock = CLOCK,
        dice: Dice = DICE,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._clock = clock
        self._dice = dice
        self._session = Session(Members(self._endpoints, tls, dice), user, password)
        self._keeper = LeaseKeeper(self._session, clock, dice)

    @classmethod
    def from_settings(cls, settings: Settings, *, clock: Clock = CLOCK, dice: Dice = DICE) -> EtcdStore:
        """Make the store that the settings name."""
        return cls(
            settings.etcd,
            user=settings.etcd_user,
            password=settings.etcd_password,
            tls=settings.etcd_tls,
            clock=clock,
            dice=dice,
        )

    def __repr__(self) -> str:
        return f"EtcdStore({','.join(map(str, self._endpoints))}, connected={self.connected})"

    @property
    def connected(self) -> bool:
        """Whether the last exchange with etcd went well."""
        return self._session.connected

    async def get(self, key: str) -> Entry | None:
        """Return the key's entry, or None."""
        answer = await self._session.call(wire.RANGE, wire.range_request(key))
        return wire.entry_of(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        """Return everything under a prefix."""
        answer = await self._session.call(wire.RANGE, wire.list_request(prefix))
        entries = (wire.entry_of(kv) for kv in answer.kvs)
        return Listing({entry.key: entry for entry in entries}, answer.header.revision)

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        """Set a key and return the revision."""
        answer = await self._session.call(wire.PUT, wire.put_request(key, value, _number(lease)))
        return answer.header.revision

    async def put_if_absent(self, key: str, value: bytes, lease: Lease | None = None) -> bool:
        """Set a key only if there is none; return whether it was set."""
        number = _number(lease)
        answer = await self._session.call(wire.TXN, wire.put_if_absent_request(key, value, number))
        if answer.succeeded:
            return True
        # A try whose answer was lost may have done it: what is there under our own lease is ours.
        there = answer.responses[0].response_range.kvs
        return bool(number and there and there[0].lease == number and there[0].value == value)

    async def delete(self, key: str) -> bool:
        """Delete a key; return whether there was one."""
        answer = await self._session.call(wire.DELETE, wire.delete_request(key))
        return answer.deleted > 0

    async def lease(self, ttl: float) -> EtcdLease:
        """Grant a lease and keep it alive."""
        return await self._keeper.grant(ttl)

    def watch(self, prefix: str, after: int) -> AsyncIterator[Changed]:
        """Tell every change under a prefix after a revision, for ever."""
        return watch(self._session, prefix, after, self._clock, self._dice)

    async def close(self) -> None:
        """Let go of every connection."""
        await self._keeper.close()
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _number(lease: Lease | None) -> int:
    return 0 if lease is None else lease.id
