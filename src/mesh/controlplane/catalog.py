"""The mesh as the control plane knows it: views, contracts and policies in, snapshots out. No waiting here."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from mesh.contract.descriptors import is_plumbing
from mesh.controlplane import contracts, scripts
from mesh.errors import ContractError
from mesh.instance import Instance, View
from mesh.policy import BalancerPolicy, BreakerPolicy
from mesh.xds.clusters import cluster_for_envoy, cluster_for_grpc
from mesh.xds.endpoints import endpoints, is_numeric
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

# Builders are pure: what did not change is not built again.
_endpoints = functools.lru_cache(maxsize=8192)(endpoints)
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
    """

    def __init__(self, *, reflection: bool = True) -> None:
        self._reflection = reflection
        self._retention: dict[str, Retention] = {}
        self._instances: dict[str, tuple[Instance, ...]] = {}
        self._contracts: dict[str, bytes] = {}
        self._chosen: dict[str, str] = {}
        self._policies: Mapping[str, bytes] = {}
        self._refused: frozenset[str] = frozenset()
        self.known = False

    def observe_views(self, views: Mapping[str, View]) -> None:
        """Take the views of all services."""
        if not all(view.known for view in views.values()):
            return
        self.known = True
        for name in sorted(self._instances.keys() | views.keys()):
            if is_plumbing(name):
                continue
            retention = self._retention.setdefault(name, Retention())
            self._instances[name] = retention.observe(views.get(name, View.of(name, ())))
            if retention.suspects:
                _log.warning(
                    "%s lost %d instances at once without a goodbye; they are kept until news tells more",
                    name,
                    len(retention.suspects),
                    extra={"event.action": "instances-kept", "service.name": name},
                )
        self._warn_of_names()

    def observe_policies(self, policies: Mapping[str, bytes]) -> None:
        """Take the operators' overrides, by service."""
        self._policies = dict(policies)

    def observe_contract(self, digest: str, contract: bytes) -> None:
        """Take a contract that was fetched; one that does not stand by itself is logged and left out."""
        self._contracts[digest] = contract

    @property
    def wanted(self) -> frozenset[str]:
        """Digests that instances name and that were not fetched yet."""
        named = {i.contract for instances in self._instances.values() for i in instances if i.contract}
        return frozenset(named - self._contracts.keys())

    def services(self) -> tuple[Service, ...]:
        """Return every service, sorted by name."""
        return tuple(
            Service(name, instances, self._methods_of(name, instances))
            for name, instances in sorted(self._instances.items())
        )

    def merged(self) -> contracts.Merged:
        """Return all contracts in one; the service with most instances first."""
        order = sorted(self._instances, key=lambda name: (-len(self._instances[name]), name))
        return _merge(tuple((name, self._contracts[self._chosen[name]]) for name in order if self._chosen.get(name)))

    def snapshot(self, audience: Audience, secrets: str = "") -> Snapshot:
        """Build what a client of this kind should hold. `secrets`: see mesh.xds.clusters."""
        services = self.services()
        if audience is Audience.GRPC:
            return Snapshot.of(resource for service in services for resource in _for_grpc(service, secrets))
        merged = self.merged()
        return Snapshot.of(
            [
                *(_cluster_for_envoy(s.name, _breaker(s.methods), secrets, _balancer(s.methods)) for s in services),
                *(_endpoints(s.name, s.instances) for s in services),
                routes_for_envoy(services, reflection=self._reflection),
                transcoder(merged.descriptors, merged.services),
                _strict(merged),
                script(REPEATS, scripts.repeats(services)),
            ]
        )

    def _methods_of(self, name: str, instances: tuple[Instance, ...]) -> tuple[Method, ...]:
        chosen = contracts.pick(instances, self._contracts) or self._chosen.get(name, "")
        if not chosen:
            return ()
        self._chosen[name] = chosen
        try:
            return _methods(name, self._contracts[chosen], self._policies.get(name))
        except ContractError as e:
            _log.warning("the contract of %s is left out: %s", name, e, extra={"event.action": "contract-refused"})
            del self._chosen[name]
            return ()

    def _warn_of_names(self) -> None:
        named = frozenset(
            str(i.endpoint) for instances in self._instances.values() for i in instances if not is_numeric(i.endpoint)
        )
        for address in sorted(named - self._refused):
            _log.warning(
                "%s is left out: Envoy and gRPC want an IP address; set MESH_ADVERTISE to one",
                address,
                extra={"event.action": "endpoint-refused"},
            )
        self._refused = named


def _for_grpc(service: Service, secrets: str) -> tuple[Resource, ...]:
    return (
        _listener_for_grpc(service.name),
        routes_for_grpc(service),
        _cluster_for_grpc(service.name, secrets, _balancer(service.methods)),
        _endpoints(service.name, service.instances),
    )


def _breaker(methods: tuple[Method, ...]) -> BreakerPolicy:
    """A cluster has one breaker: the service's, which every method has unless it says otherwise."""
    counts = Counter(method.policy.breaker for method in methods)
    return max(counts, key=lambda b: counts[b], default=BreakerPolicy())


def _balancer(methods: tuple[Method, ...]) -> BalancerPolicy:
    """A cluster has one balancer, by the same rule. Keys that are fields of requests are each method's own."""
    counts = Counter(replace(method.policy.balancer, hash_field="") for method in methods)
    return max(counts, key=lambda b: counts[b], default=BalancerPolicy())
