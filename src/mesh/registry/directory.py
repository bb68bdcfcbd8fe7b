"""From the store's entries to Views: records read, those that cannot be used left out, and who is present decided.

Nothing here waits. A record is read once for each of its revisions; one that cannot be used is counted and logged once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mesh.errors import RecordError
from mesh.instance import Instance, State, View
from mesh.network import Network
from mesh.registry.record import decode
from mesh.registry.roster import Roster
from mesh.store import Entry
from mesh.telemetry.metrics import RECORDS_SKIPPED, REGISTRY_INSTANCES, REGISTRY_STALE

if TYPE_CHECKING:
    from prometheus_client import Gauge

_log = logging.getLogger("mesh.registry")

# Of a key that was never read: no revision of etcd's is below 1.
_NOTHING: tuple[int, Instance | None] = (-1, None)


class Directory:
    """The Views of the services under a prefix, or of the one service `only`.

    `_read` holds what each key's present revision was read as; `_rosters` one roster for each service seen.
    """

    def __init__(self, prefix: str, networks: Sequence[str] = (), only: str = "") -> None:
        self._prefix = prefix
        self._networks = tuple(map(Network.parse, networks))
        self._read: dict[str, tuple[int, Instance | None]] = {}
        self._rosters: dict[str, Roster] = {only: Roster(only)} if only else {}
        self._only = only
        self._stale = False
        self.known = False
        self.views: dict[str, View] = {only: View(only)} if only else {}

    @property
    def stale(self) -> bool:
        """Whether the store was out of reach at the last look."""
        return self._stale

    def update(self, entries: Mapping[str, Entry | None], now: float, *, whole: bool = True) -> set[str]:
        """Take what the store shows; return the services whose View changed.

        entries: all of it, or without `whole` what changed, None for what is there no more.
        """
        news: dict[str, dict[str, Instance | None]] = {}
        keys: Iterable[str] = entries
        if whole:
            keys = [*entries, *(self._read.keys() - entries.keys())]
            news = {service: {} for service in self._rosters}
        self.known = True
        for key in keys:
            _, before = self._read.get(key, _NOTHING)
            after = self._read_again(key, entries.get(key))
            instance = after or before
            if instance is not None and after is not before:
                news.setdefault(instance.service, {})[instance.id] = after
        return {s for s, changed in news.items() if self._publish(s, self._roster(s).change(changed, now))}

    def tick(self, now: float, stale: bool) -> set[str]:
        """Let time pass, the store being out of reach or not; return the services whose View changed."""
        self._stale = stale
        changed = set()
        for service, roster in tuple(self._rosters.items()):
            roster.mark_stale(stale)
            if self._publish(service, roster.tick(now)):
                changed.add(service)
        return changed

    def _roster(self, service: str) -> Roster:
        if service not in self._rosters:
            self._rosters[service] = Roster(service)
            self._rosters[service].mark_stale(self._stale)
        return self._rosters[service]

    def _publish(self, service: str, view: View) -> bool:
        """Note a View; return whether it is another than the one before."""
        roster = self._rosters[service]
        before = self.views.get(service)
        if roster.is_empty and service != self._only:
            del self._rosters[service]
            self.views.pop(service, None)
            published = before is not None
        else:
            self.views[service] = view
            published = before != view
        if published:
            _measure(view, roster.counts)
        return published

    def _read_again(self, key: str, entry: Entry | None) -> Instance | None:
        """Return what a key's present revision reads as."""
        if entry is None:
            self._read.pop(key, None)
            return None
        revision, instance = self._read.get(key, _NOTHING)
        if revision != entry.mod_revision:
            instance = self._use(entry)
            self._read[key] = entry.mod_revision, instance
        return instance

    def _use(self, entry: Entry) -> Instance | None:
        try:
            instance = decode(entry.key, entry.value, self._prefix)
        except RecordError as e:
            self._skip(entry.key, "record", str(e))
            return None
        if self._networks and not any(instance.endpoint in network for network in self._networks):
            self._skip(entry.key, "network", f"{instance.endpoint} is outside the networks allowed by MESH_NETWORKS")
            return None
        return instance

    def _skip(self, key: str, reason: str, why: str) -> None:
        RECORDS_SKIPPED.labels(reason).inc()
        _log.warning("skipped the record %.200r: %s", key, why, extra={"event.action": "record-skipped"})


def _measure(view: View, counts: Mapping[State, int]) -> None:
    stale, by_state = _gauges(view.service)
    stale.set(view.stale)
    for state, gauge in by_state:
        gauge.set(counts.get(state, 0))


@functools.lru_cache(maxsize=1024)
def _gauges(service: str) -> tuple[Gauge, tuple[tuple[State, Gauge], ...]]:
    """Finding a gauge by its labels costs more than all else that a change does."""
    by_state = tuple((state, REGISTRY_INSTANCES.labels(service, state.value)) for state in State)
    return REGISTRY_STALE.labels(service), by_state
