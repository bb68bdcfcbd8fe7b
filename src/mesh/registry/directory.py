"""From the store's entries to Views: records read, those that cannot be used left out, and who is present decided.

Nothing here waits. A record is read once for each of its revisions; one that cannot be used is counted and logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from mesh.errors import RecordError
from mesh.instance import Instance, Network, View
from mesh.registry.record import decode
from mesh.registry.roster import Roster
from mesh.store import Entry
from mesh.telemetry.metrics import RECORDS_SKIPPED, REGISTRY_INSTANCES, REGISTRY_STALE

_log = logging.getLogger("mesh.registry")


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

    def update(self, entries: Mapping[str, Entry], now: float) -> set[str]:
        """Take everything that the store shows; return the services whose View changed."""
        self.known = True
        seen: dict[str, dict[str, Instance]] = {service: {} for service in self._rosters}
        read: dict[str, tuple[int, Instance | None]] = {}
        for key, entry in entries.items():
            before = self._read.get(key)
            read[key] = before if before and before[0] == entry.mod_revision else (entry.mod_revision, self._use(entry))
            instance = read[key][1]
            if instance is not None:
                seen.setdefault(instance.service, {})[instance.id] = instance
        self._read = read
        changed = set()
        for service, instances in seen.items():
            if self._publish(service, self._roster(service).update(instances, now)):
                changed.add(service)
        return changed

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
        if self._rosters[service].is_empty and service != self._only:
            del self._rosters[service]
            gone = self.views.pop(service, None) is not None
            if gone:
                _measure(view)
            return gone
        if self.views.get(service) == view:
            return False
        self.views[service] = view
        _measure(view)
        return True

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


def _measure(view: View) -> None:
    for state in ("ready", "draining", "paused"):
        count = sum(i.state == state for i in view.instances)
        REGISTRY_INSTANCES.labels(view.service, state).set(count)
    REGISTRY_STALE.labels(view.service).set(view.stale)
