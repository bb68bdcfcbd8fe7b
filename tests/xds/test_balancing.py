"""What Envoy and gRPC are told of a policy's balancer."""

from __future__ import annotations

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster

from mesh.policy import Balancer, BalancerPolicy, BreakerPolicy, MethodPolicy
from mesh.xds.clusters import cluster_for_envoy, cluster_for_grpc
from mesh.xds.routes import routes_for_envoy, routes_for_grpc
from mesh.xds.snapshot import Method, Service
from support.routes import routes_in

S = "a.v1.B"
BY_TENANT = BalancerPolicy(Balancer.CONSISTENT_HASH, hash_metadata="x-tenant")
BY_FIELD = BalancerPolicy(Balancer.CONSISTENT_HASH, hash_field="id")


def for_envoy(policy: BalancerPolicy) -> Cluster:
    return Cluster.FromString(cluster_for_envoy(S, BreakerPolicy(), "", policy).body)


def for_grpc(policy: BalancerPolicy) -> Cluster:
    return Cluster.FromString(cluster_for_grpc(S, "", policy).body)


@pytest.mark.parametrize(
    ("policy", "envoy", "grpc"),
    [
        (BalancerPolicy(), "ROUND_ROBIN", "ROUND_ROBIN"),
        (BalancerPolicy(Balancer.LEAST_LOADED), "LEAST_REQUEST", "ROUND_ROBIN"),
        (BalancerPolicy(Balancer.WEIGHTED), "ROUND_ROBIN", "ROUND_ROBIN"),
        (BY_TENANT, "RING_HASH", "RING_HASH"),
        (BY_FIELD, "ROUND_ROBIN", "ROUND_ROBIN"),
    ],
)
def test_each_is_told_what_it_understands(policy: BalancerPolicy, envoy: str, grpc: str) -> None:
    assert Cluster.LbPolicy.Name(for_envoy(policy).lb_policy) == envoy
    assert Cluster.LbPolicy.Name(for_grpc(policy).lb_policy) == grpc


def test_grpc_goes_by_load_reports_where_servers_send_them() -> None:
    [policy] = for_grpc(BalancerPolicy(Balancer.WEIGHTED, load_reports=True)).load_balancing_policy.policies
    assert policy.typed_extension_config.typed_config.type_url.endswith(".wrr_locality.v3.WrrLocality")
    assert not for_grpc(BalancerPolicy(Balancer.WEIGHTED)).HasField("load_balancing_policy")


@pytest.mark.parametrize("kind", [Balancer.ROUND_ROBIN, Balancer.WEIGHTED, Balancer.LEAST_LOADED])
def test_slow_start_holds_in_envoy(kind: Balancer) -> None:
    cluster = for_envoy(BalancerPolicy(kind, slow_start=30.0))
    configs = (cluster.round_robin_lb_config, cluster.least_request_lb_config)
    assert sorted(c.slow_start_config.slow_start_window.seconds for c in configs) == [0, 30]


def test_routes_name_the_key_of_each_method() -> None:
    methods = (
        Method(f"/{S}/Keyed", policy=MethodPolicy(balancer=BY_TENANT)),
        Method(f"/{S}/Plain", policy=MethodPolicy(balancer=BY_FIELD)),
    )
    service = Service(S, (), methods)
    for resource in (routes_for_envoy([service], reflection=False), routes_for_grpc(service)):
        keys = {r.match.path: [h.header.header_name for h in r.route.hash_policy] for r in routes_in(resource.body)}
        assert keys[f"/{S}/Keyed"] == ["x-tenant"]
        assert keys[f"/{S}/Plain"] == []
