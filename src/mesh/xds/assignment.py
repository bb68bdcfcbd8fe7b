"""A service's endpoints as they change: the same resource as `endpoints` builds, made from the one before.

Views come whole, and most of them differ from the one before in one instance of thousands. What differs is found by
identity from both ends; the rest of each locality is kept as bytes.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections import Counter
from itertools import compress, count
from typing import TypeVar

from mesh.instance import Instance
from mesh.xds import endpoints
from mesh.xds.resources import Resource

T = TypeVar("T")


class Assignment:
    """The endpoints of one service. `update` takes all instances each time, sorted by id."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._instances: tuple[Instance, ...] = ()
        self._localities: dict[str, _Locality] = {}
        self._owners: Counter[tuple[str, int]] = Counter()
        self._nameless: Counter[str] = Counter()
        self._placed = 0

    @property
    def nameless(self) -> frozenset[str]:
        """Addresses that are left out, because they are no IP addresses."""
        return frozenset(self._nameless)

    def update(self, instances: tuple[Instance, ...]) -> Resource:
        """Return the endpoints of these instances."""
        head, tail = _same(self._instances, instances)
        gone = self._instances[head : len(self._instances) - tail]
        come = instances[head : len(instances) - tail]
        self._instances = instances
        for instance in gone:
            self._drop(instance)
        for instance in come:
            self._put(instance)
        if len(self._owners) < self._placed:  # an address with two owners: see there
            return endpoints.endpoints(self._service, instances)
        bodies = [(zone, locality.body(zone)) for zone, locality in self._localities.items()]
        return endpoints.resource(self._service, bodies)

    def _put(self, instance: Instance) -> None:
        endpoint = instance.endpoint
        if not endpoints.is_numeric(endpoint):
            self._nameless[str(endpoint)] += 1
            return
        self._placed += 1
        self._owners[endpoint.host, endpoint.port] += 1
        self._localities.setdefault(instance.zone, _Locality()).put(instance)

    def _drop(self, instance: Instance) -> None:
        endpoint = instance.endpoint
        if not endpoints.is_numeric(endpoint):
            _less(self._nameless, str(endpoint))
            return
        self._placed -= 1
        _less(self._owners, (endpoint.host, endpoint.port))
        locality = self._localities[instance.zone]
        locality.drop(instance)
        if not locality.weight:
            del self._localities[instance.zone]


class _Locality:
    """The instances of a zone, in the order of their ids."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._parts: list[bytes] = []
        self.weight = 0

    def put(self, instance: Instance) -> None:
        at = bisect_left(self._ids, instance.id)
        self._ids.insert(at, instance.id)
        self._parts.insert(at, endpoints.part(instance))
        self.weight += max(1, instance.weight)

    def drop(self, instance: Instance) -> None:
        at = bisect_left(self._ids, instance.id)
        del self._ids[at], self._parts[at]
        self.weight -= max(1, instance.weight)

    def body(self, zone: str) -> bytes:
        return endpoints.locality(zone, self._parts, self.weight)


def _less(counter: Counter[T], key: T) -> None:
    """Take one away; what is there no more is not counted as 0."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _same(before: tuple[T, ...], after: tuple[T, ...]) -> tuple[int, int]:
    """Return how many things at the beginning, and how many at the end, are the very same in both."""
    least = min(len(before), len(after))
    head = next(compress(count(), map(operator.is_not, before, after)), least)
    tail = next(compress(count(), map(operator.is_not, reversed(before), reversed(after))), least)
    return head, min(tail, least - head)
