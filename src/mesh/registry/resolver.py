"""Keeps us knowing the others: what services consist of, told to listeners at each change.

What is known stays known while the store is away (and is marked stale), while records are poisoned, and while a prefix
that was deleted by accident is being registered anew; `roster` says how that is decided. News arrive by watch, within
a millisecond or two of the change.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from mesh.clock import Clock, Dice
from mesh.errors import InvalidName
from mesh.instance import View, check_service_name
from mesh.registry.directory import Directory
from mesh.registry.mirror import Mirror
from mesh.registry.record import contract_key, policies_prefix, service_prefix, services_prefix
from mesh.store import Entry, Store
from mesh.wallclock import CLOCK, DICE

_log = logging.getLogger("mesh.registry")

# Seconds between looks at whether the store is connected, and at suspects whose time is over. A store that is away for
# two looks is away; one look may fall between two members.
_LOOK_EVERY = 0.5

T = TypeVar("T")
AllListener = Callable[[Mapping[str, View]], None]
PolicyListener = Callable[[Mapping[str, bytes]], None]


class Subscription:
    """A wish to be told. `close()` ends it; the listener is not called afterwards."""

    def __init__(self, end: Callable[[Subscription], None]) -> None:
        self._end = end

    def close(self) -> None:
        """Stop being told. May be called twice."""
        self._end(self)


class _Branch:
    """One watched prefix of services, and who listens to it."""

    def __init__(self, directory: Directory, now: Callable[[], float]) -> None:
        self.directory = directory
        self.listeners: dict[Subscription, Callable[[set[str]], None]] = {}
        self.mirror: Mirror | None = None
        self._now = now

    def take(self, entries: Mapping[str, Entry | None], whole: bool) -> None:
        first = not self.directory.known
        now = self._now()
        changed = self.directory.update(entries, now, whole=whole)
        if self.directory.stale:  # it was reached just now
            changed |= self.directory.tick(now, stale=False)
        self.tell(changed, even_if_none=first)

    def look(self, stale: bool) -> None:
        self.tell(self.directory.tick(self._now(), stale))

    def tell(self, changed: set[str], even_if_none: bool = False) -> None:
        if not changed and not even_if_none:
            return
        for listener in tuple(self.listeners.values()):
            _call(listener, changed)


class Resolver:
    """Finds the instances of services. Use it from one event loop; close it with `aclose`.

    prefix: where the mesh lives in the store.
    networks: CIDR blocks, with ports if wanted, that instances may be in; empty: any.
    """

    def __init__(
        self,
        store: Store,
        prefix: str = "mesh",
        *,
        clock: Clock = CLOCK,
        dice: Dice = DICE,
        networks: tuple[str, ...] = (),
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._dice = dice
        self._networks = networks
        self._branches: dict[str, _Branch] = {}
        self._policies: set[Mirror] = set()
        self._contracts: dict[str, bytes] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._watchman: asyncio.Task[None] | None = None

    def subscribe(self, service: str, listener: Callable[[View], None]) -> Subscription:
        """Tell the View of a service: at once, known or not, and then whenever it changes.

        Raises InvalidName if it is no service's name.
        """
        check_service_name(service)
        branch = self._branch(service)
        views = branch.directory.views

        def on_change(changed: set[str]) -> None:
            if service in changed:
                listener(views[service])

        subscription = self._add(service, branch, on_change)
        _call(listener, views[service])
        return subscription

    def trouble(self, service: str) -> str:
        """Why a service that was subscribed to is not known or up to date, in a sentence; empty while all is well."""
        mirror = self._branches[service].mirror if service in self._branches else None
        return mirror.trouble if mirror else ""

    def subscribe_all(self, listener: AllListener) -> Subscription:
        """Tell the Views of all services: first when they are known (at once, if they are), then at each change.

        A service is in the mapping while it has instances. The mapping is the listener's own.
        """
        branch = self._branch("")
        subscription = self._add("", branch, lambda _: listener(dict(branch.directory.views)))
        if branch.directory.known:
            _call(listener, dict(branch.directory.views))
        return subscription

    def subscribe_policies(self, listener: PolicyListener) -> Subscription:
        """Tell the operators' policies, service to protobuf JSON: first when they are known, then at each change."""
        root = policies_prefix(self._prefix)

        policies: dict[str, bytes] = {}

        def on_change(entries: Mapping[str, Entry | None], whole: bool) -> None:
            if whole:
                policies.clear()
            for key, entry in entries.items():
                policies.pop(key.removeprefix(root), None)
                if entry is not None:
                    policies[key.removeprefix(root)] = entry.value
            _call(listener, dict(policies))

        mirror = Mirror(self._store, root, on_change, self._clock, self._dice)
        self._policies.add(mirror)

        def end(_: Subscription) -> None:
            if mirror in self._policies:
                self._policies.discard(mirror)
                self._close_later(mirror)

        return Subscription(end)

    async def contract(self, digest: str) -> bytes | None:
        """Return the descriptors with this SHA-256, or None if the store has none that match it.

        Raises StoreUnavailable or StoreDenied.
        """
        if digest not in self._contracts:
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise InvalidName(f"{digest[:80]!r} is no SHA-256 in hex")
            entry = await self._store.get(contract_key(self._prefix, digest))
            if entry is None:
                return None
            if hashlib.sha256(entry.value).hexdigest() != digest:
                _log.warning("contract %s holds something else; ignored", digest)
                return None
            self._contracts[digest] = entry.value
        return self._contracts[digest]

    async def aclose(self) -> None:
        """End every subscription and everything that runs."""
        if self._watchman is not None:
            self._watchman.cancel()
            await asyncio.wait([self._watchman])
        for mirror in [b.mirror for b in self._branches.values() if b.mirror is not None] + list(self._policies):
            self._close_later(mirror)
        self._branches.clear()
        self._policies.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    def _branch(self, service: str) -> _Branch:
        """Return the branch of a service, or of all for "", and begin to watch it."""
        branch = self._branches.get(service)
        if branch is None:
            directory = Directory(self._prefix, self._networks, only=service)
            branch = self._branches[service] = _Branch(directory, self._clock.monotonic)
            where = service_prefix(self._prefix, service) if service else services_prefix(self._prefix)
            branch.mirror = Mirror(self._store, where, branch.take, self._clock, self._dice)
        if self._watchman is None or self._watchman.done():
            self._watchman = asyncio.get_running_loop().create_task(self._look(), name="mesh-resolver")
        return branch

    def _add(self, service: str, branch: _Branch, listener: Callable[[set[str]], None]) -> Subscription:
        def end(subscription: Subscription) -> None:
            branch.listeners.pop(subscription, None)
            if not branch.listeners and self._branches.get(service) is branch:
                del self._branches[service]
                if branch.mirror is not None:
                    self._close_later(branch.mirror)

        subscription = Subscription(end)
        branch.listeners[subscription] = listener
        return subscription

    def _close_later(self, mirror: Mirror) -> None:
        task = asyncio.get_running_loop().create_task(mirror.close(), name="mesh-mirror-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _look(self) -> None:
        away = 0
        while self._branches:
            await self._clock.sleep(_LOOK_EVERY)
            away = 0 if self._store.connected else away + 1
            for branch in tuple(self._branches.values()):
                branch.look(stale=away >= 2)


def _call(listener: Callable[[T], None], news: T) -> None:
    """Tell a listener; whatever it raises is logged and harms nobody else."""
    try:
        listener(news)
    except Exception:
        _log.exception("a listener to the registry failed")
