"""Where a channel learns of instances: a fixed list, a resolver that somebody else keeps, or the registry of the
settings.

Registries are shared: all channels of one event loop with the same settings stand on one etcd session, closed with the
last of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from mesh.clock import Clock, Dice
from mesh.instance import Endpoint, Instance, View
from mesh.settings import Settings

if TYPE_CHECKING:
    from mesh.registry.resolver import Resolver, Subscription
    from mesh.store import Store

Listener = Callable[[View], None]
Overrides = Callable[[bytes | None], None]


class Source(Protocol):
    """Tells views of one service, in the event loop where it was opened."""

    where: str
    """For error messages: where instances are looked for."""

    @property
    def trouble(self) -> str:
        """For error messages: what is wrong with that place, if it is known."""
        ...

    @property
    def shared(self) -> tuple[Store, str] | None:
        """The store that this service's clients share, and its prefix; None where they share nothing."""
        ...

    def open(self, listener: Listener, overrides: Overrides) -> None:
        """Tell the present view now and each changed one from now on; and an operator's policy, or None at its end."""
        ...

    async def close(self) -> None:
        """Tell nothing more and let go of what was opened. May be called twice."""
        ...


class FixedSource:
    """A list that never changes."""

    def __init__(self, service: str, endpoints: Iterable[str | Endpoint]) -> None:
        parsed = [e if isinstance(e, Endpoint) else Endpoint.parse(e) for e in endpoints]
        unique = list(dict.fromkeys(parsed))
        self._view = View.of(service, [Instance(service, f"fixed-{n:04}", e) for n, e in enumerate(unique)])
        self.where = "a fixed list of endpoints"
        self.trouble = ""
        self.shared = None

    def open(self, listener: Listener, overrides: Overrides) -> None:
        """Tell the list, once."""
        listener(self._view)

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


class ResolverSource:
    """A resolver that somebody else made and will close."""

    def __init__(self, service: str, resolver: Resolver, where: str = "the given resolver") -> None:
        self._service = service
        self._resolver = resolver
        self._subscriptions: list[Subscription] = []
        self.where = where
        self.shared = None

    @property
    def trouble(self) -> str:
        """What the resolver complains of."""
        return self._resolver.trouble(self._service)

    def open(self, listener: Listener, overrides: Overrides) -> None:
        """Subscribe."""
        tell = _changes_of(self._service, overrides)
        self._subscriptions = [
            self._resolver.subscribe(self._service, listener),
            self._resolver.subscribe_policies(tell),
        ]

    async def close(self) -> None:
        """Unsubscribe."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            subscription.close()


class RegistrySource:
    """The registry that the settings name, or a store that somebody else made and will close."""

    def __init__(self, service: str, settings: Settings, store: Store | None, clock: Clock, dice: Dice) -> None:
        self._service = service
        self._settings = settings
        self._store = store
        self._clock = clock
        self._dice = dice
        self._session: _Session | None = None
        self._subscription: Subscription | None = None
        members = ",".join(map(str, settings.etcd))
        self.where = f"{f'etcd {members}' if store is None else type(store).__name__}, prefix {settings.prefix}"

    @property
    def trouble(self) -> str:
        """What the session's resolver complains of."""
        return self._session.resolver.trouble(self._service) if self._session else ""

    @property
    def shared(self) -> tuple[Store, str] | None:
        """The store of the session."""
        return (self._session.store, self._settings.prefix) if self._session else None

    def open(self, listener: Listener, overrides: Overrides) -> None:
        """Join the session of this loop, or begin one, and subscribe."""
        self._session = session = _Session.join(self._settings, self._store, self._clock, self._dice)
        self._subscription = session.resolver.subscribe(self._service, listener)
        self._tell = _changes_of(self._service, overrides)
        session.follow_policies(self._tell)

    async def close(self) -> None:
        """Unsubscribe; the last to leave ends the session."""
        subscription, self._subscription = self._subscription, None
        session, self._session = self._session, None
        if subscription is not None:
            subscription.close()
        if session is not None:
            await session.leave(self._tell)


PolicyListener = Callable[[Mapping[str, bytes]], None]


def _changes_of(service: str, overrides: Overrides) -> PolicyListener:
    """Return what hears of all policies and tells the changes of one service's."""
    last: bytes | None = None

    def changed(policies: Mapping[str, bytes]) -> None:
        nonlocal last
        if policies.get(service) != last:
            last = policies.get(service)
            overrides(last)

    return changed


_Key = tuple[asyncio.AbstractEventLoop, Settings, int]


class _Session:
    """One resolver, and one store if it is ours, for all channels of a loop with the same settings."""

    _open: dict[_Key, _Session] = {}  # noqa: RUF012  shared by intent: one table per process, each loop sees its own keys

    def __init__(self, key: _Key, store: Store | None, clock: Clock, dice: Dice) -> None:
        # Here and not above: a channel with a fixed list needs neither of them.
        from mesh.etcd import EtcdStore
        from mesh.registry.resolver import Resolver

        settings = key[1]
        self._key = key
        self._members = 0
        self._policies: Mapping[str, bytes] | None = None
        self._listeners: list[PolicyListener] = []
        self._owned = EtcdStore.from_settings(settings) if store is None else None
        # Kept so that the id in the key stays the id of a living store.
        self.store: Store = store if store is not None else self._owned  # type: ignore[assignment]  # one of both is there
        self.resolver = Resolver(self.store, settings.prefix, clock=clock, dice=dice, networks=settings.networks)

    @classmethod
    def join(cls, settings: Settings, store: Store | None, clock: Clock, dice: Dice) -> _Session:
        key = (asyncio.get_running_loop(), settings, id(store))
        for gone in [k for k in cls._open if k[0].is_closed()]:
            del cls._open[gone]
        session = cls._open.get(key)
        if session is None:
            session = cls._open[key] = cls(key, store, clock, dice)
        session._members += 1
        return session

    def follow_policies(self, listener: PolicyListener) -> None:
        # One watch for all channels of the session.
        if not self._listeners:
            self.resolver.subscribe_policies(self._policies_changed)
        self._listeners.append(listener)
        if self._policies is not None:
            listener(self._policies)

    def _policies_changed(self, policies: Mapping[str, bytes]) -> None:
        self._policies = policies
        for listener in self._listeners:
            listener(policies)

    async def leave(self, listener: PolicyListener) -> None:
        self._listeners.remove(listener)
        self._members -= 1
        if self._members:
            return
        self._open.pop(self._key, None)
        await self.resolver.aclose()
        if self._owned is not None:
            await self._owned.close()
