"""Snapshots and the messages in them: deterministic, consistent, and what Envoy and gRPC can take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.cluster.v3.outlier_detection_pb2 import OutlierDetection
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.route.v3.route_components_pb2 import RouteList
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.buffer.v3.buffer_pb2 import BufferPerRoute

from mesh.instance import Endpoint, Instance
from mesh.policy import BreakerMode, BreakerPolicy, HedgingPolicy, MethodPolicy, RetryPolicy
from mesh.xds.clusters import cluster_for_envoy, cluster_for_grpc
from mesh.xds.endpoints import endpoints
from mesh.xds.resources import CLUSTER, ENDPOINTS
from mesh.xds.routes import routes_for_envoy, routes_for_grpc
from mesh.xds.snapshot import Method, Service, Snapshot
from support.routes import routes_in

S = "a.v1.B"
READ = Method(f"/{S}/Read", policy=MethodPolicy(timeout=4.0, idempotent=True))
WRITE = Method(f"/{S}/Write", policy=MethodPolicy(timeout=4.0, has_request_id=True), request_id=2)
PLAIN = Method(f"/{S}/Plain", policy=MethodPolicy(timeout=0.5))
WATCH = Method(f"/{S}/Watch", streaming=True, policy=MethodPolicy(timeout=3600.0, idempotent=True))


def at(number: int, host: str = "10.0.0.1", zone: str = "", weight: int = 1) -> Instance:
    return Instance(S, f"i{number}", Endpoint(host, 1000 + number), zone=zone, weight=weight)


def envoy_routes(*methods: Method) -> list:  # type: ignore[type-arg]  # xds-protos has no types
    return routes_in(routes_for_envoy([Service(S, (), methods)], reflection=False).body)


def routes_of(method: Method) -> list:  # type: ignore[type-arg]  # xds-protos has no types
    found = [r for r in envoy_routes(method) if r.match.path == method.path]
    return found[:-2] if len(found) > 2 and not method.is_marked else found


def spent_routes_of(method: Method) -> list:  # type: ignore[type-arg]  # xds-protos has no types
    found = [r for r in envoy_routes(method) if r.match.path == method.path]
    return found[len(routes_of(method)) :]


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
    twin = at(1)._replace(id="twin")
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
        assert route.route.retry_policy.per_try_timeout.ToMilliseconds() == 400


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


def test_call_without_a_budget_is_repeated_only_if_it_was_not_processed() -> None:
    for route in routes_of(READ):
        assert [h.invert_match for h in route.match.headers if h.name == "x-mesh-spent"] == [True]
    for route in spent_routes_of(READ):
        assert "x-mesh-spent" not in [h.name for h in route.match.headers]
        assert "unavailable" not in route.route.retry_policy.retry_on
        assert "connect-failure" in route.route.retry_policy.retry_on
        assert not route.route.retry_policy.HasField("per_try_timeout")
    assert len(spent_routes_of(READ)) == 2
    assert not any(spent_routes_of(method) for method in (WRITE, PLAIN))


def test_routes_of_a_method_lie_at_its_path_and_the_last_of_them_takes_all_its_calls() -> None:
    other = Method(f"/{S}/Read/Other", policy=READ.policy)
    resource = routes_for_envoy([Service(S, (), (READ, WRITE, PLAIN, WATCH, other))], reflection=True)
    [host] = RouteConfiguration.FromString(resource.body).virtual_hosts

    leaves = host.matcher.matcher_tree.exact_match_map.map
    assert not host.routes
    for path, leaf in leaves.items():
        routes = RouteList()
        assert leaf.action.typed_config.Unpack(routes)
        assert {route.match.path for route in routes.routes} == {path}
        assert not routes.routes[-1].match.headers
    assert [r.match.path for r in routes_in(resource.body)[-4:]] == [""] * 4
    assert set(leaves) == {m.path for m in (READ, WRITE, PLAIN, WATCH, other)}


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
            assert filters["envoy.filters.http.buffer"].Is(BufferPerRoute.DESCRIPTOR) is marked
            assert "strict" in filters


@pytest.mark.parametrize(("method", "counted"), [(READ, True), (WRITE, True), (PLAIN, False), (WATCH, True)])
def test_calls_that_may_be_repeated_go_through_the_filter_that_keeps_the_budget(method: Method, counted: bool) -> None:
    assert method.is_repeated is counted
    assert all(("repeats" not in route.typed_per_filter_config) is counted for route in routes_of(method))


def test_hedging_of_the_policy_stands_in_the_place_of_retries() -> None:
    hedging = HedgingPolicy(max_attempts=3, delay=0.05, codes=frozenset({"INTERNAL"}))
    policy = MethodPolicy(idempotent=True, hedging=hedging, retry=RetryPolicy(max_attempts=1, attempt_timeout=1.0))

    for route in routes_of(Method(f"/{S}/Hedged", policy=policy)):
        retry = route.route.retry_policy
        assert retry.num_retries.value == 2
        assert retry.per_try_timeout.ToMilliseconds() == 50
        assert "internal" in retry.retry_on
        assert "unavailable" not in retry.retry_on
        assert route.route.hedge_policy.hedge_on_per_try_timeout


def test_attempt_that_took_its_time_is_ended_where_the_policy_says_how_long_it_may_take() -> None:
    policy = MethodPolicy(idempotent=True, retry=RetryPolicy(attempt_timeout=0.3))

    for route in routes_of(Method(f"/{S}/Limited", policy=policy)):
        assert route.route.retry_policy.per_try_timeout.ToMilliseconds() == 300
        assert not route.route.hedge_policy.hedge_on_per_try_timeout


@pytest.mark.parametrize("method", [WRITE, PLAIN])
def test_call_that_may_not_be_repeated_is_never_hedged_whatever_its_policy_says(method: Method) -> None:
    policy = method.policy._replace(hedging=HedgingPolicy(max_attempts=3), retry=RetryPolicy(attempt_timeout=0.1))

    for route in routes_of(replace(method, policy=policy))[-2:]:
        assert not route.route.retry_policy.HasField("per_try_timeout")
        assert not route.route.hedge_policy.hedge_on_per_try_timeout


def test_retries_can_be_switched_off() -> None:
    policy = MethodPolicy(idempotent=True, retry=RetryPolicy(max_attempts=1))

    for route in routes_of(Method(f"/{S}/Once", policy=policy)):
        assert route.route.retry_policy.retry_on == ""
        assert route.route.retry_policy.num_retries.value == 0


def test_service_without_a_contract_has_one_route_and_no_repeats() -> None:
    routes = envoy_routes()

    assert routes[0].match.prefix == f"/{S}/"
    assert "reset," not in routes[0].route.retry_policy.retry_on + ","


def outliers(breaker: BreakerPolicy) -> OutlierDetection:
    return Cluster.FromString(cluster_for_envoy(S, breaker).body).outlier_detection


def test_breaker_is_written_as_outlier_detection() -> None:
    found = outliers(BreakerPolicy(failure_rate=0.6, outlier_failure_rate=0.3, open_for=4, consecutive_failures=7))

    assert found.failure_percentage_threshold.value == 30
    assert found.consecutive_gateway_failure.value == 7
    assert found.base_ejection_time.ToMilliseconds() == 4000
    assert found.max_ejection_time.ToMilliseconds() == 12000
    assert outliers(BreakerPolicy(failure_rate=0.6, outlier_failure_rate=0.1)).failure_percentage_threshold.value == 20
    assert outliers(BreakerPolicy(failure_rate=0.6, outlier_failure_rate=0)).failure_percentage_threshold.value == 60
    assert outliers(BreakerPolicy(window_time=10)).interval.seconds == 10


def test_connections_that_are_taken_and_broken_eject_too() -> None:
    assert outliers(BreakerPolicy()).enforcing_failure_percentage_local_origin.value == 100


def test_health_check_does_not_bring_back_who_answers_badly() -> None:
    assert not outliers(BreakerPolicy()).successful_active_health_check_uneject_host.value
    assert outliers(BreakerPolicy()).HasField("successful_active_health_check_uneject_host")


@pytest.mark.parametrize("mode", [BreakerMode.DISABLED, BreakerMode.METRICS_ONLY])
def test_breaker_that_decides_nothing_ejects_only_who_cannot_be_connected(mode: BreakerMode) -> None:
    found = outliers(BreakerPolicy(mode=mode))

    assert found.enforcing_consecutive_gateway_failure.value == found.enforcing_failure_percentage.value == 0
    assert found.HasField("enforcing_consecutive_gateway_failure")
    assert found.enforcing_consecutive_local_origin_failure.value == 100


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
