"""How Envoy and gRPC's own clients choose instances, as near to the policy as each of them comes.

| policy          | Envoy                                    | gRPC                                              |
|-----------------|------------------------------------------|---------------------------------------------------|
| ROUND_ROBIN     | round robin by weights                   | round robin                                       |
| LEAST_LOADED    | least requests of five drawn             | round robin: its core refuses anything else       |
| WEIGHTED        | round robin by weights                   | with load_reports weighted_round_robin (gRFC A58) |
| CONSISTENT_HASH | ring by the metadata entry               | ring by the metadata entry (gRFC A42)             |

A key that is a field of the request is seen by neither. slow_start holds in Envoy. Zones and subsets are the client's.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3 import (
    client_side_weighted_round_robin_pb2,
)
from envoy.extensions.load_balancing_policies.wrr_locality.v3 import wrr_locality_pb2
from google.protobuf.message import Message

from mesh.policy import Balancer, BalancerPolicy
from mesh.xds.durations import duration
from mesh.xds.resources import pack

_Cluster = cluster_pb2.Cluster
# Envoy draws with replacement and knows the calls under way, not their time. Of three instances, two draws are both the
# slow one's in one pick of nine; five in one of 243, so that it has hardly more than one call at a time.
_DRAWN = 5


def balance_envoy(cluster: cluster_pb2.Cluster, policy: BalancerPolicy) -> None:
    """Have Envoy choose so."""
    if policy.kind is Balancer.LEAST_LOADED:
        cluster.lb_policy = _Cluster.LEAST_REQUEST
        cluster.least_request_lb_config.choice_count.value = _DRAWN
        _start_slowly(cluster.least_request_lb_config, policy)
    elif policy.kind is Balancer.CONSISTENT_HASH and policy.hash_metadata:
        cluster.lb_policy = _Cluster.RING_HASH
    else:
        _start_slowly(cluster.round_robin_lb_config, policy)


def balance_grpc(cluster: cluster_pb2.Cluster, policy: BalancerPolicy) -> None:
    """Have gRPC's clients choose so."""
    if policy.kind is Balancer.CONSISTENT_HASH and policy.hash_metadata:
        cluster.lb_policy = _Cluster.RING_HASH
    elif policy.kind is Balancer.WEIGHTED and policy.load_reports:
        picking = wrr_locality_pb2.WrrLocality()
        _add(picking.endpoint_picking_policy, client_side_weighted_round_robin_pb2.ClientSideWeightedRoundRobin())
        _add(cluster.load_balancing_policy, picking)


def hash_policies(policy: BalancerPolicy) -> Iterable[route_components_pb2.RouteAction.HashPolicy]:
    """Return what a route takes the key from."""
    if policy.kind is Balancer.CONSISTENT_HASH and policy.hash_metadata:
        header = route_components_pb2.RouteAction.HashPolicy.Header(header_name=policy.hash_metadata)
        yield route_components_pb2.RouteAction.HashPolicy(header=header)


def _start_slowly(
    config: cluster_pb2.Cluster.RoundRobinLbConfig | cluster_pb2.Cluster.LeastRequestLbConfig, policy: BalancerPolicy
) -> None:
    if policy.slow_start:
        config.slow_start_config.slow_start_window.CopyFrom(duration(policy.slow_start))


def _add(policies: cluster_pb2.LoadBalancingPolicy, message: Message) -> None:
    extension = policies.policies.add().typed_extension_config
    extension.typed_config.CopyFrom(pack(message))
    extension.name = extension.typed_config.type_url.rpartition("/")[2]
