"""The mesh as the control plane knows it: views, contracts and policies in, snapshots out. No waiting here."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping
from operator import attrgetter

from mesh.contract.descriptors import is_plumbing
from mesh.controlplane import contracts, scripts
from mesh.errors import ContractError
from mesh.instance import Instance, View
from mesh.policy import BalancerPolicy, BreakerPolicy
from mesh.xds.assignment import Assignment
from mesh.xds.clusters import cluster_for_envoy, cluster_for_grpc
from mesh.xds.listeners import listener_for_grpc
from mesh.xds.resources import CLUSTER, Resource
from mesh.xds.retention import Retention
from mesh.xds.routes import CONTROL_PLANE, routes_for_envoy, routes_for_grpc
from mesh.xds.scripts import REPEATS, STRICT, script
from mesh.xds.snapshot import Audience, Method, Service, Snapshot
from mesh.xds.transcoder import transcoder

_log = logging.getLogger("mesh.controlplane")

# Static clusters of front.yaml.
GIVEN = frozenset({(CLUSTER, CONTROL_PLANE)})

# Kinds of clients whose resources are kept.
_KINDS = 64

# Builders are pure: what did not change is not built again.
_cluster_for_envoy = functools.lru_cache(maxsize=8192)(cluster_for_envoy)
_cluster_for_grpc = functools.lru_cache(maxsize=8192)(cluster_for_grpc)
_listener_for_grpc = functools.lru_cache(maxsize=8192)(listener_for_grpc)
_methods = functools.lru_cache(maxsize=8192)(contracts.methods)
_merge = functools.lru_cache(maxsize=4)(contracts.merge)


@functools.lru_cache(maxsize=4)
def _strict(merged: contracts.Merged) -> Resource:
    return script(STRICT, scripts.strict(contracts.pool_of(merged), merged.services))


class Catalog:
    """What is known. `observe_…` take news in; `wanted` says which contracts to fetch; `snapshot` builds.

    A service once seen stays known, without instances, until the process ends: its callers get 503 and not 404.

    One instance that comes or goes is the usual news, so whatever does not follow from it is kept: `_crews` what is
    known of each service's instances, `_standing` the resources of each kind of client that no instance changes, with
    what they were made of.
    """

    def __init__(self, *, reflection: bool = True) -> None:
        self._reflection = reflection
        self._retention: dict[str, Retention] = {}
        self._seen: Mapping[str, View] = {}
        self._crews: dict[str, _Crew] = {}
        self._contracts: dict[str, bytes] = {}
        self._chosen: dict[str, str] = {}
        self._policies: Mapping[str, bytes] = {}
        self._standing: dict[tuple[Audience, str], tuple[object, tuple[Resource, ...]]] = {}
        self.known = False

    def observe_views(self, views: Mapping[str, View]) -> None:
        """Take the views of all services."""
        if not all(view.known for view in views.values()):
            return
        self.known = True
        # A view that is the very same as before says nothing new.
        for name in sorted(n for n in self._seen.keys() | views.keys() if views.get(n) is not self._seen.get(n)):
            if is_plumbing(name):
                continue
            retention = self._retention.setdefault(name, Retention())
            self._crews.setdefault(name, _Crew(name)).take(retention.observe(views.get(name, View.of(name, ()))))
            if retention.suspects:
                _log.warning(
                    "%s lost %d instances at once without a goodbye; they are kept until news tells more",
                    name,
                    len(retention.suspects),
                    extra={"event.action": "instances-kept", "service.name": name},
                )
        self._seen = dict(views)

    def observe_policies(self, policies: Mapping[str, bytes]) -> None:
        """Take the operators' overrides, by service."""
        self._policies = dict(policies)

    def observe_contract(self, digest: str, contract: bytes) -> None:
        """Take a contract that was fetched; one that does not stand by itself is logged and left out."""
        self._contracts[digest] = contract

    @property
    def wanted(self) -> frozenset[str]:
        """Digests that instances name and that were not fetched yet."""
        named = {digest for crew in self._crews.values() for digest in crew.contracts if digest}
        return frozenset(named - self._contracts.keys())

    def services(self) -> tuple[Service, ...]:
        """Return every service, sorted by name."""
        return tuple(
            Service(name, crew.instances, self._methods_of(name, crew)) for name, crew in sorted(self._crews.items())
        )

    def merged(self) -> contracts.Merged:
        """Return all contracts in one; the service with most instances first."""
        order = sorted(self._crews, key=lambda name: (-len(self._crews[name].instances), name))
        return _merge(tuple((name, self._contracts[self._chosen[name]]) for name in order if self._chosen.get(name)))

    def snapshot(self, audience: Audience, secrets: str = "") -> Snapshot:
        """Build what a client of this kind should hold. `secrets`: see mesh.xds.clusters."""
        services = self.services()
        assigned = [self._crews[service.name].endpoints() for service in services]
        return Snapshot.of([*self._standing_for(audience, secrets, services), *assigned])

    def _standing_for(self, audience: Audience, secrets: str, services: tuple[Service, ...]) -> tuple[Resource, ...]:
        """Return the resources that follow from contracts and policies alone."""
        merged = self.merged() if audience is Audience.ENVOY else None
        made_of = merged, [(service.name, service.methods) for service in services]
        kept = self._standing.pop((audience, secrets), None)
        if kept is None or kept[0] != made_of:
            if merged is None:
                made = tuple(resource for service in services for resource in _for_grpc(service, secrets))
            else:
                made = self._for_envoy(services, secrets, merged)
            kept = made_of, made
        while len(self._standing) >= _KINDS:
            del self._standing[next(iter(self._standing))]
        self._standing[audience, secrets] = kept
        return kept[1]

    def _for_envoy(self, services: tuple[Service, ...], secrets: str, merged: contracts.Merged) -> tuple[Resource, ...]:
        return (
            *(_cluster_for_envoy(s.name, _breaker(s.methods), secrets, _balancer(s.methods)) for s in services),
            routes_for_envoy(services, reflection=self._reflection),
            transcoder(merged.descriptors, merged.services),
            _strict(merged),
            script(REPEATS, scripts.repeats(services)),
        )

    def _methods_of(self, name: str, crew: _Crew) -> tuple[Method, ...]:
        chosen = crew.pick(self._contracts) or self._chosen.get(name, "")
        if not chosen:
            return ()
        self._chosen[name] = chosen
        try:
            return _methods(name, self._contracts[chosen], self._policies.get(name))
        except ContractError as e:
            _log.warning("the contract of %s is left out: %s", name, e, extra={"event.action": "contract-refused"})
            del self._chosen[name]
            return ()


class _Crew:
    """The instances of a service, and what follows from them. `contracts`: how many name each contract."""

    def __init__(self, service: str) -> None:
        self.instances: tuple[Instance, ...] = ()
        self.contracts: Mapping[str, int] = {}
        self._assignment = Assignment(service)
        self._assigned: tuple[tuple[Instance, ...], Resource] | None = None
        self._picked: tuple[tuple[Instance, ...], int, str] | None = None
        self._told: frozenset[str] = frozenset()

    def take(self, instances: tuple[Instance, ...]) -> None:
        """Note who is there."""
        if instances is not self.instances:
            self.instances = instances
            self.contracts = Counter(map(attrgetter("contract"), instances))

    def pick(self, known: Mapping[str, bytes]) -> str:
        """Return the digest of the contract that counts; see `contracts.pick`. `known` only ever grows."""
        if self._picked is None or self._picked[0] is not self.instances or self._picked[1] != len(known):
            self._picked = self.instances, len(known), contracts.pick(self.instances, known, self.contracts)
        return self._picked[2]

    def endpoints(self) -> Resource:
        """Build the endpoints, if that was not done for these instances; complain of those that are left out."""
        if self._assigned is None or self._assigned[0] is not self.instances:
            self._assigned = self.instances, self._assignment.update(self.instances)
            self._complain()
        return self._assigned[1]

    def _complain(self) -> None:
        nameless = self._assignment.nameless
        for address in sorted(nameless - self._told):
            _log.warning(
                "%s is left out: Envoy and gRPC want an IP address; set MESH_ADVERTISE to one",
                address,
                extra={"event.action": "endpoint-refused"},
            )
        self._told = nameless


def _for_grpc(service: Service, secrets: str) -> tuple[Resource, ...]:
    return (
        _listener_for_grpc(service.name),
        routes_for_grpc(service),
        _cluster_for_grpc(service.name, secrets, _balancer(service.methods)),
    )


def _breaker(methods: tuple[Method, ...]) -> BreakerPolicy:
    """A cluster has one breaker: the service's, which every method has unless it says otherwise."""
    counts = Counter(method.policy.breaker for method in methods)
    return max(counts, key=lambda b: counts[b], default=BreakerPolicy())


def _balancer(methods: tuple[Method, ...]) -> BalancerPolicy:
    """A cluster has one balancer, by the same rule. Keys that are fields of requests are each method's own."""
    counts = Counter(method.policy.balancer._replace(hash_field="") for method in methods)
    return max(counts, key=lambda b: counts[b], default=BalancerPolicy())
