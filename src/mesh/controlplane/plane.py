"""The control plane's loop: follows the registry, keeps a snapshot for each kind of client, tells streams of news."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from mesh.clock import Clock
from mesh.controlplane.catalog import GIVEN, Catalog
from mesh.errors import MeshError
from mesh.instance import View
from mesh.telemetry.metrics import XDS_SNAPSHOTS
from mesh.wallclock import CLOCK
from mesh.xds.snapshot import Audience, Snapshot

_log = logging.getLogger("mesh.controlplane")

# The first change is sent at once; those that follow within this time are sent together. A rolling restart of a
# thousand instances is then twenty pushes a second and not a thousand.
_GATHER = 0.05
# Between attempts to fetch a contract from a store that does not answer.
_FETCH_AGAIN = 1.0
# Attempts for which a control plane that has just started holds back its first snapshot.
_PATIENCE = 3
# Kinds of Envoy by where their certificates lie; more than this in one mesh is a fault or an attack.
_MAX_KINDS = 64


class Closable(Protocol):
    """What a subscription gives back."""

    def close(self) -> None:
        """End it."""
        ...


class Source(Protocol):
    """What the control plane needs of a resolver."""

    def subscribe_all(self, listener: Callable[[Mapping[str, View]], None]) -> Closable:
        """Tell the views of all services, now and at each change."""
        ...

    def subscribe_policies(self, listener: Callable[[Mapping[str, bytes]], None]) -> Closable:
        """Tell the operators' overrides, now and at each change."""
        ...

    def contract(self, digest: str) -> Awaitable[bytes | None]:
        """Fetch a contract."""
        ...


Kind = tuple[Audience, str]
"""An audience, and where its certificates lie."""


class Plane:
    """Keeps the last good snapshots. Everything runs in one event loop; only `_rebuild` changes snapshots."""

    def __init__(self, source: Source, *, reflection: bool = True, clock: Clock = CLOCK) -> None:
        self.catalog = Catalog(reflection=reflection)
        self._source = source
        self._clock = clock
        self._kinds: dict[Kind, Snapshot] = {}
        self._listeners: set[asyncio.Event] = set()
        self._policies_known = False
        self._subscriptions: list[Closable] = []
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._awaited: set[str] = set()
        self._gathering: asyncio.Task[None] | None = None
        self._built_at = float("-inf")

    def start(self) -> None:
        """Begin to follow the registry."""
        self._subscriptions = [
            self._source.subscribe_policies(self._policies_changed),
            self._source.subscribe_all(self._views_changed),
        ]

    async def stop(self) -> None:
        """Let go of the registry."""
        for subscription in self._subscriptions:
            subscription.close()
        tasks = [*self._fetching.values(), *([self._gathering] if self._gathering else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def attach(self) -> asyncio.Event:
        """Return an event that is set whenever snapshots may have changed."""
        event = asyncio.Event()
        self._listeners.add(event)
        return event

    def detach(self, event: asyncio.Event) -> None:
        """Forget an event."""
        self._listeners.discard(event)

    def snapshot(self, kind: Kind) -> Snapshot | None:
        """Return the kind's last good snapshot; None until the registry was read once."""
        if not self._ready:
            return None
        if kind not in self._kinds:
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.pop(next(iter(self._kinds)))
            self._build(kind)
        return self._kinds.get(kind)

    @property
    def _ready(self) -> bool:
        """Whether all of the registry was read once."""
        # A first snapshot without the contracts would take methods away from fronts that have them already.
        if not (self.catalog.known and self._policies_known):
            return False
        return self._built_at > float("-inf") or not self._awaited

    def _views_changed(self, views: Mapping[str, View]) -> None:
        self.catalog.observe_views(views)
        for digest in self.catalog.wanted - self._fetching.keys():
            self._awaited.add(digest)
            self._fetching[digest] = asyncio.create_task(self._fetch(digest))
        self._changed()

    def _policies_changed(self, policies: Mapping[str, bytes]) -> None:
        self.catalog.observe_policies(policies)
        self._policies_known = True
        self._changed()

    async def _fetch(self, digest: str) -> None:
        """Fetch a contract, for as long as an instance names it."""
        attempts = 0
        try:
            while digest in self.catalog.wanted and (problem := await self._try_fetch(digest)):
                attempts += 1
                if attempts == 1:
                    _log.warning("contract %.12s: %s", digest, problem, extra={"event.action": "contract-missing"})
                if attempts == _PATIENCE:
                    self._awaited.discard(digest)
                    self._changed()
                await self._clock.sleep(_FETCH_AGAIN)
        finally:
            self._awaited.discard(digest)
            self._fetching.pop(digest, None)
        self._changed()

    async def _try_fetch(self, digest: str) -> str:
        """Fetch a contract once; return what was in the way, "" for nothing."""
        try:
            contract = await self._source.contract(digest)
        except MeshError as e:
            return str(e)
        if contract is None:
            return "it is not in the store"
        self.catalog.observe_contract(digest, contract)
        return ""

    def _changed(self) -> None:
        if self._ready and self._gathering is None:
            if self._clock.monotonic() - self._built_at >= _GATHER:
                self._rebuild()
            else:
                self._gathering = asyncio.create_task(self._gather())

    async def _gather(self) -> None:
        await self._clock.sleep(self._built_at + _GATHER - self._clock.monotonic())
        self._gathering = None
        self._rebuild()

    def _rebuild(self) -> None:
        self._built_at = self._clock.monotonic()
        for kind in tuple(self._kinds):
            self._build(kind)
        for event in self._listeners:
            event.set()

    def _build(self, kind: Kind) -> None:
        try:
            snapshot = self.catalog.snapshot(*kind)
            missing = "; ".join(snapshot.missing(GIVEN)[:5])
        except Exception:  # whatever a contract holds, the snapshot before stays good
            XDS_SNAPSHOTS.labels("failed").inc()
            _log.exception("kept the snapshot before", extra={"event.action": "snapshot-failed"})
            return
        XDS_SNAPSHOTS.labels("inconsistent" if missing else "ok").inc()
        if missing:
            _log.error("kept the snapshot before: %s", missing, extra={"event.action": "snapshot-refused"})
            return
        self._kinds[kind] = snapshot
