"""Snapshots and the messages in them: deterministic, consistent, and what Envoy and gRPC can take."""

from __future__ import annotations

import dataclasses

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.buffer.v3.buffer_pb2 import BufferPerRoute

from mesh.instance import Endpoint, Instance
from mesh.policy import BreakerPolicy, MethodPolicy, RetryPolicy
from mesh.xds.clusters import cluster_for_envoy, cluster_for_grpc
from mesh.xds.endpoints import endpoints
from mesh.xds.resources import CLUSTER, ENDPOINTS
from mesh.xds.routes import routes_for_envoy, routes_for_grpc
from mesh.xds.snapshot import Method, Service, Snapshot

S = "a.v1.B"
READ = Method(f"/{S}/Read", policy=MethodPolicy(timeout=4.0, idempotent=True))
WRITE = Method(f"/{S}/Write", policy=MethodPolicy(timeout=4.0, has_request_id=True), request_id=2)
PLAIN = Method(f"/{S}/Plain", policy=MethodPolicy(timeout=0.5))
WATCH = Method(f"/{S}/Watch", streaming=True, policy=MethodPolicy(timeout=3600.0, idempotent=True))


def at(number: int, host: str = "10.0.0.1", zone: str = "", weight: int = 1) -> Instance:
    return Instance(S, f"i{number}", Endpoint(host, 1000 + number), zone=zone, weight=weight)


def envoy_routes(*methods: Method) -> RouteConfiguration:
    service = Service(S, (), methods)
    return RouteConfiguration.FromString(routes_for_envoy([service], reflection=False).body)


def routes_of(method: Method) -> list:  # type: ignore[type-arg]  # xds-protos has no types
    return [r for r in envoy_routes(method).virtual_hosts[0].routes if r.match.path == method.path]


def test_snapshot_names_what_is_missing() -> None:
    snapshot = Snapshot.of([cluster_for_envoy(S, BreakerPolicy())])

    assert snapshot.missing() == (f"CDS {S} needs EDS {S}",)
    assert snapshot.missing(frozenset({(ENDPOINTS, S)})) == ()


def test_routes_need_their_clusters() -> None:
    snapshot = Snapshot.of([routes_for_envoy([Service(S)], reflection=False)])

    assert snapshot.missing() == (f"RDS front needs CDS {S}",)
    assert snapshot.missing(frozenset({(CLUSTER, S)})) == ()


def test_order_of_instances_does_not_change_the_version() -> None:
    assert endpoints(S, (at(1), at(2))) == endpoints(S, (at(2), at(1)))


def test_names_and_second_instances_at_an_address_are_left_out_of_endpoints() -> None:
    twin = dataclasses.replace(at(1), id="twin")
    message = ClusterLoadAssignment.FromString(endpoints(S, (at(1), twin, at(2, host="db.example"))).body)

    [locality] = message.endpoints
    assert [e.endpoint.address.socket_address.port_value for e in locality.lb_endpoints] == [1001]


def test_zones_are_localities_with_the_sum_of_their_weights() -> None:
    instances = (at(1, zone="a", weight=3), at(2, zone="a"), at(3, zone="b"))
    message = ClusterLoadAssignment.FromString(endpoints(S, instances).body)

    assert [(x.locality.zone, x.load_balancing_weight.value) for x in message.endpoints] == [("a", 4), ("b", 1)]


def test_ipv6_is_written_without_brackets() -> None:
    message = ClusterLoadAssignment.FromString(endpoints(S, (at(1, host="[::1]"),)).body)

    assert message.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address == "::1"


def test_idempotent_method_is_repeated_after_a_reset_and_hedged() -> None:
    for route in routes_of(READ):
        assert {"reset", "unavailable", "cancelled", "connect-failure"} <= set(
            route.route.retry_policy.retry_on.split(",")
        )
        assert route.route.retry_policy.retry_host_predicate
        assert route.route.hedge_policy.hedge_on_per_try_timeout
        assert route.route.retry_policy.per_try_timeout.seconds == 1


@pytest.mark.parametrize("method", [WRITE, PLAIN])
def test_other_method_is_repeated_only_if_it_was_not_processed(method: Method) -> None:
    for route in routes_of(method)[-2:]:
        assert set(route.route.retry_policy.retry_on.split(",")) == {
            "connect-failure",
            "refused-stream",
            "reset-before-request",
        }
        assert not route.route.hedge_policy.hedge_on_per_try_timeout


def test_write_that_is_marked_is_repeated() -> None:
    marked = routes_of(WRITE)[:2]

    assert all("x-mesh-repeatable" in [h.name for h in r.match.headers] for r in marked)
    assert all("reset" in r.route.retry_policy.retry_on for r in marked)
    assert all("x-mesh-repeatable" in r.request_headers_to_remove for r in marked)
    assert len(routes_of(PLAIN)) == 2


def test_json_has_the_methods_time_and_grpc_its_callers() -> None:
    json, grpc = routes_of(READ)

    assert json.route.timeout.seconds == 4
    assert grpc.route.timeout.seconds == 0
    assert grpc.route.max_stream_duration.max_stream_duration.seconds == 4
    assert grpc.route.max_stream_duration.grpc_timeout_header_max.seconds == 3600


def test_stream_is_neither_cut_by_silence_nor_buffered_nor_hedged() -> None:
    for route in routes_of(WATCH):
        assert route.route.idle_timeout.seconds == 3600
        assert route.route.timeout.seconds == 0
        assert not route.route.hedge_policy.hedge_on_per_try_timeout


def test_only_calls_that_are_looked_into_are_waited_for() -> None:
    for method, marked in ((READ, False), (WRITE, True), (PLAIN, False), (WATCH, False)):
        for route in routes_of(method):
            filters = route.typed_per_filter_config
            assert ("repeats" not in filters) is marked
            assert filters["envoy.filters.http.buffer"].Is(BufferPerRoute.DESCRIPTOR) is marked
            assert "strict" in filters


def test_retries_can_be_switched_off() -> None:
    policy = MethodPolicy(idempotent=True, retry=RetryPolicy(max_attempts=1))

    for route in routes_of(Method(f"/{S}/Once", policy=policy)):
        assert route.route.retry_policy.retry_on == ""
        assert route.route.retry_policy.num_retries.value == 0


def test_service_without_a_contract_has_one_route_and_no_repeats() -> None:
    routes = envoy_routes().virtual_hosts[0].routes

    assert routes[0].match.prefix == f"/{S}/"
    assert "reset," not in routes[0].route.retry_policy.retry_on + ","


def test_cluster_with_secrets_speaks_tls() -> None:
    plain = Cluster.FromString(cluster_for_envoy(S, BreakerPolicy()).body)
    tls = Cluster.FromString(cluster_for_envoy(S, BreakerPolicy(), "/secrets").body)

    assert not plain.HasField("transport_socket")
    assert tls.transport_socket.name == "envoy.transport_sockets.tls"


def test_grpc_is_sent_no_more_than_it_knows() -> None:
    cluster = Cluster.FromString(cluster_for_grpc(S).body)
    routes = RouteConfiguration.FromString(routes_for_grpc(Service(S, (), (READ, WRITE))).body)

    assert not cluster.health_checks
    assert not cluster.typed_extension_protocol_options
    assert [r.match.path for r in routes.virtual_hosts[0].routes] == [READ.path, WRITE.path, ""]
    assert not any(r.match.headers for r in routes.virtual_hosts[0].routes)
