"""CDS: how a service is reached, once for Envoy and once for gRPC's own client, which knows less."""

from __future__ import annotations

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import config_source_pb2, health_check_pb2, protocol_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf.duration_pb2 import Duration

from mesh.policy import BalancerPolicy, BreakerMode, BreakerPolicy
from mesh.xds.balancing import balance_envoy, balance_grpc
from mesh.xds.durations import duration
from mesh.xds.resources import ENDPOINTS, Resource, pack

_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

# Names of the secrets, each a file NAME.yaml in the folder that front.yaml's node metadata points at.
IDENTITY, AUTHORITY = "identity", "authority"

# A service on the same network answers a connection in a millisecond; a black hole must not hold a call for longer.
_CONNECT = 1.0
# A stopped process is noticed within the interval plus the timeout. It costs each instance one call per second and
# Envoy.
_HEALTH_INTERVAL, _HEALTH_TIMEOUT = 1.0, 1.0
# Envoy's published edge hardening.
_BUFFER, _STREAM_WINDOW, _CONNECTION_WINDOW = 32 * 1024, 64 * 1024, 1024 * 1024
# Attempts beyond the first at one time, as a share of the calls under way. One of three instances that dies has a third
# of them; a lower share would fail some of these. It bounds storms of slow calls; where calls fail quickly next to none
# are under way, and the budget in the filter `repeats` bounds them.
_RETRY_SHARE, _RETRIES_ALWAYS = 40.0, 20
# The failure rate is that of the last so many seconds, each for itself; they are long enough for a breaker's
# `minimum_calls` at an instance that has ten a second.
_LOOK_EVERY, _LOOK_EVERY_AT_MOST = 2.0, 30.0
# A breaker lets a few probes through and opens again; an instance comes back here with its whole share, and Envoy knows
# nothing of a process that was started again. So it comes back after so many seconds at most, at first and at last:
# what is still slow then costs some late calls each time, and what has recovered is not idle for long (docs/edge.md).
_EJECTED_FIRST, _EJECTED_LAST = 10.0, 12.0
# A breaker compares instances, Envoy judges each by itself: less than this may be a bad day of all of them.
_LOWEST_OUTLIER = 0.2
_TOLD_ONLY = (BreakerMode.DISABLED, BreakerMode.METRICS_ONLY)
_MAX_CALLS, _MAX_CONNECTIONS = 10_000, 1024
_IN_TURN = BalancerPolicy()


def cluster_for_envoy(
    service: str, breaker: BreakerPolicy, secrets: str = "", balancer: BalancerPolicy = _IN_TURN
) -> Resource:
    """Build the service's cluster.

    secrets: path, on Envoy's machine, of the folder with its certificates as SDS files; empty: plain text.
    """
    message = _cluster(service)
    message.connect_timeout.CopyFrom(duration(_CONNECT))
    message.per_connection_buffer_limit_bytes.value = _BUFFER
    message.typed_extension_protocol_options[_HTTP].CopyFrom(pack(_http2()))
    message.health_checks.append(_health_check())
    message.outlier_detection.CopyFrom(_outliers(breaker))
    message.circuit_breakers.CopyFrom(_circuit_breakers())
    message.common_lb_config.CopyFrom(
        cluster_pb2.Cluster.CommonLbConfig(
            # With more than half of the instances out, ejection itself is the suspect: use all.
            healthy_panic_threshold={"value": 50.0},
            # By default health changes wait up to a second to be merged; a new instance would stand idle so long.
            update_merge_window=Duration(),
            ignore_new_hosts_until_first_hc=True,
        )
    )
    # An instance that left the registry is left alone at once, though its health check may still pass.
    message.ignore_health_on_host_removal = True
    balance_envoy(message, balancer)
    if secrets:
        message.transport_socket.name = "envoy.transport_sockets.tls"
        message.transport_socket.typed_config.CopyFrom(pack(_tls(secrets)))
    return Resource.of(service, message, (ENDPOINTS, service))


def cluster_for_grpc(service: str, secrets: str = "", balancer: BalancerPolicy = _IN_TURN) -> Resource:
    """Build the service's cluster out of what gRPC's clients understand (gRFC A27, A29, A32, A50).

    secrets: name of the certificate provider in the client's bootstrap; empty: the client's fallback credentials.
    """
    message = _cluster(service)
    message.circuit_breakers.thresholds.add().max_requests.value = _MAX_CALLS
    balance_grpc(message, balancer)
    message.outlier_detection.CopyFrom(
        outlier_detection_pb2.OutlierDetection(
            interval=duration(1),
            base_ejection_time=duration(5),
            max_ejection_percent={"value": 50},
            failure_percentage_threshold={"value": 50},
            enforcing_failure_percentage={"value": 100},
            failure_percentage_minimum_hosts={"value": 2},
            failure_percentage_request_volume={"value": 20},
            enforcing_success_rate={"value": 0},
        )
    )
    if secrets:
        message.transport_socket.name = "envoy.transport_sockets.tls"
        message.transport_socket.typed_config.CopyFrom(pack(_tls_by_provider(secrets)))
    return Resource.of(service, message, (ENDPOINTS, service))


def _cluster(service: str) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=service,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=over_ads()),
        lb_policy=cluster_pb2.Cluster.ROUND_ROBIN,
    )


def over_ads() -> config_source_pb2.ConfigSource:
    """Say that a resource comes over the same stream."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )


def _http2() -> http_protocol_options_pb2.HttpProtocolOptions:
    http2 = protocol_pb2.Http2ProtocolOptions(
        initial_stream_window_size={"value": _STREAM_WINDOW},
        initial_connection_window_size={"value": _CONNECTION_WINDOW},
    )
    explicit = http_protocol_options_pb2.HttpProtocolOptions.ExplicitHttpConfig(http2_protocol_options=http2)
    return http_protocol_options_pb2.HttpProtocolOptions(explicit_http_config=explicit)


def _health_check() -> health_check_pb2.HealthCheck:
    # HTTP/2 pings would find a stopped process as well, but Go's servers hang up on clients that ping more often than
    # every five minutes; a health check is an ordinary call.
    return health_check_pb2.HealthCheck(
        timeout=duration(_HEALTH_TIMEOUT),
        interval=duration(_HEALTH_INTERVAL),
        interval_jitter_percent=10,
        unhealthy_interval=duration(_HEALTH_INTERVAL / 2),
        # Without these a service nobody has called yet is looked at once a minute.
        no_traffic_interval=duration(_HEALTH_INTERVAL),
        unhealthy_threshold={"value": 1},
        healthy_threshold={"value": 1},
        grpc_health_check=health_check_pb2.HealthCheck.GrpcHealthCheck(),
    )


def _outliers(breaker: BreakerPolicy) -> outlier_detection_pb2.OutlierDetection:
    """What comes nearest to a breaker. The router tells gRPC's codes as HTTP's.

    UNAVAILABLE is 503 and DEADLINE_EXCEEDED 504 (gateway failures), UNKNOWN, INTERNAL and DATA_LOSS are 500, and
    UNIMPLEMENTED, which no breaker minds, is 501. A code that comes after headers of its own is not looked at. Another
    rule, `outlier_detection.error_matcher`, is not asked about answers of gRPC (Envoy 1.40).

    FORCED_OPEN has no word here, nor have slow calls: an instance is slow by what a call asks for as well.
    """
    enforced = {"value": 0 if breaker.mode in _TOLD_ONLY else 100}
    outlier = max(breaker.outlier_failure_rate, _LOWEST_OUTLIER) if breaker.outlier_failure_rate else 1.0
    return outlier_detection_pb2.OutlierDetection(
        # Answers that fail are counted apart from connections that fail and attempts that are not answered in their
        # time: two of these eject, always.
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure={"value": 2},
        enforcing_consecutive_local_origin_failure={"value": 100},
        consecutive_gateway_failure={"value": breaker.consecutive_failures},
        enforcing_consecutive_gateway_failure=enforced,
        consecutive_5xx={"value": breaker.consecutive_failures},
        enforcing_consecutive_5xx={"value": 0},
        # By standard deviations: of three instances the only one that ever failed is out, however rarely it did.
        enforcing_success_rate={"value": 0},
        enforcing_local_origin_success_rate={"value": 0},
        failure_percentage_threshold={"value": round(min(breaker.failure_rate, outlier) * 100)},
        enforcing_failure_percentage=enforced,
        # A path that takes connections and breaks them; connecting is a success each time, so nothing is in a row.
        enforcing_failure_percentage_local_origin=enforced,
        failure_percentage_minimum_hosts={"value": 2},
        failure_percentage_request_volume={"value": breaker.minimum_calls},
        interval=duration(min(max(breaker.window_time, _LOOK_EVERY), _LOOK_EVERY_AT_MOST)),
        base_ejection_time=duration(min(breaker.open_for, _EJECTED_FIRST)),
        # Never below the first, or Envoy refuses the cluster.
        max_ejection_time=duration(
            max(min(breaker.max_open_for, _EJECTED_LAST), min(breaker.open_for, _EJECTED_FIRST))
        ),
        # A health check says that a process answers, and nothing of how it answers.
        successful_active_health_check_uneject_host={"value": False},
        max_ejection_percent={"value": 50},
        always_eject_one_host={"value": True},
    )


def _circuit_breakers() -> circuit_breaker_pb2.CircuitBreakers:
    threshold = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections={"value": _MAX_CONNECTIONS},
        max_pending_requests={"value": _MAX_CALLS},
        max_requests={"value": _MAX_CALLS},
        retry_budget=circuit_breaker_pb2.CircuitBreakers.Thresholds.RetryBudget(
            budget_percent={"value": _RETRY_SHARE}, min_retry_concurrency={"value": _RETRIES_ALWAYS}
        ),
    )
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[threshold])


def _tls(secrets: str) -> tls_pb2.UpstreamTlsContext:
    def secret(name: str) -> secret_pb2.SdsSecretConfig:
        source = config_source_pb2.ConfigSource(
            path_config_source=config_source_pb2.PathConfigSource(path=f"{secrets}/{name}.yaml"),
            resource_api_version=config_source_pb2.V3,
        )
        return secret_pb2.SdsSecretConfig(name=name, sds_config=source)

    return tls_pb2.UpstreamTlsContext(
        # The peer must show a certificate of our authority. Envoy compares SNI with DNS names only, and instances are
        # reached by IP address; a list of allowed addresses would replace the cluster whenever an instance comes.
        common_tls_context=tls_pb2.CommonTlsContext(
            tls_certificate_sds_secret_configs=[secret(IDENTITY)],
            validation_context_sds_secret_config=secret(AUTHORITY),
            alpn_protocols=["h2"],
        ),
    )


def _tls_by_provider(name: str) -> tls_pb2.UpstreamTlsContext:
    """A peer of our authority, whatever its name, as for Envoy; gRPC would want the service's name (gRFC A29)."""
    provider = common_pb2.CertificateProviderPluginInstance(instance_name=name)
    return tls_pb2.UpstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            tls_certificate_provider_instance=provider,
            validation_context=common_pb2.CertificateValidationContext(ca_certificate_provider_instance=provider),
        ),
    )
