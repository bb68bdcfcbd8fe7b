"""RDS: the way of each method, its time and its retries, as its policy says.

Envoy sees a JSON call after the transcoder: as a gRPC call whose header `x-envoy-original-path` holds what the caller
asked for. Envoy takes that header away from callers, so it tells JSON and gRPC apart.

Hedging and time limits of attempts are for calls that may be repeated and have one response. Where the policy asks for
neither, a call that takes long is hedged all the same: callers of the edge have no other way to leave an instance that
hangs. Two in a row that took too long, and Envoy leaves that instance alone for a while. It does not follow a method's
usual time (`hedging.follow_p95`).

A method that is not idempotent by its contract is tried again only when the first attempt surely did not reach a
handler. If its request has a `request_id`, a call that carries one may be sent again like any idempotent one; the
filter `repeats`, which stands before the router, marks these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2

from mesh.policy import DEFAULT_POLICY, MethodPolicy, RetryPolicy
from mesh.xds.balancing import hash_policies
from mesh.xds.durations import duration
from mesh.xds.filters import of_catch_all, of_method, of_no_time
from mesh.xds.paths import place
from mesh.xds.resources import CLUSTER, Reference, Resource, pack
from mesh.xds.snapshot import Method, Service

# The name that front.yaml asks for.
FRONT = "front"
# A static cluster of front.yaml: ourselves, who answer reflection for the whole mesh.
CONTROL_PLANE = "control_plane"
# Put on a call by the filter `repeats`, and nobody else: the filter takes a caller's own away.
REPEATABLE = "x-mesh-repeatable"
# Put on a call by the same filter when its service's retry budget has nothing left: it is sent again only when no
# handler has seen it, like a call that may not be repeated. Whoever puts it on his own call harms himself alone.
SPENT = "x-mesh-spent"
_ORIGINAL_PATH = "x-envoy-original-path"
# Stands in for it from the router on: by this front.yaml knows that an error has to be JSON.
TRANSCODED = "x-mesh-json"
# How a caller may write how long it waits.
# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests
_TIME = "[0-9]{1,8}[HMSmun]"
# What is kept of a body for a repeat.
_MAX_KEPT = 1024 * 1024

# A caller's deadline is its own affair, up to this: no call may hold a place for ten years.
MAX_DEADLINE = 3600.0
# Picks that may meet a host already tried, before one of these is taken after all.
_PICKS = 5
# A call that may be repeated and has no answer after this share of its time is also sent to another instance, the first
# answer counts: one that hangs costs its callers a pause and not a failure. Lower is quicker, and repeats slow calls.
_HEDGE_AFTER, _HEDGE_AFTER_AT_LEAST = 0.1, 0.25
_SHORTEST = 0.001
# What Envoy and gRPC understand of the codes in a policy.
_RETRIABLE = {"CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
# The attempt did not reach a handler.
_UNPROCESSED = "connect-failure,refused-stream,reset-before-request"
_REFLECTION = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")

_Headers = Sequence[route_components_pb2.HeaderMatcher]


def routes_for_envoy(services: Iterable[Service], *, reflection: bool) -> Resource:
    """Build the front's routes to all services. What matches none of them is answered by Envoy: 404, UNIMPLEMENTED."""
    host = route_components_pb2.VirtualHost(
        name="mesh",
        domains=["*"],
        request_body_buffer_limit={"value": _MAX_KEPT},
        # For the filter `repeats`, which counts them.
        include_attempt_count_in_response=True,
    )
    needs: list[Reference] = []
    methods: dict[str, Iterable[route_components_pb2.Route]] = {}
    rest: list[route_components_pb2.Route] = []
    for service in services:
        needs.append((CLUSTER, service.name))
        methods |= {method.path: _routes(service.name, method) for method in service.methods}
        if not service.methods:
            rest.extend(_foreign(service.name))
    if reflection:
        rest.extend(_reflection(name) for name in _REFLECTION)
    place(host, methods, [*rest, *_catch_all()])
    return Resource.of(FRONT, route_pb2.RouteConfiguration(name=FRONT, virtual_hosts=[host]), *needs)


def routes_for_grpc(service: Service) -> Resource:
    """Build one service's routes out of what gRPC's clients understand (gRFC A28, A31, A44)."""
    host = route_components_pb2.VirtualHost(name=service.name, domains=["*"])
    for method in service.methods:
        route = host.routes.add()
        route.match.path = method.path
        _direct(route.route, service.name)
        route.route.hash_policy.extend(hash_policies(method.policy.balancer))
        if method.policy.idempotent:
            route.route.retry_policy.CopyFrom(_grpc_retry(method.policy.retry))
    rest = host.routes.add()
    rest.match.prefix = ""
    _direct(rest.route, service.name)
    message = route_pb2.RouteConfiguration(name=service.name, virtual_hosts=[host])
    return Resource.of(service.name, message, (CLUSTER, service.name))


def _direct(action: route_components_pb2.RouteAction, cluster: str) -> None:
    action.cluster = cluster
    # The caller's deadline counts, up to our limit (gRFC A31). There is no word for a default.
    action.max_stream_duration.grpc_timeout_header_max.CopyFrom(duration(MAX_DEADLINE))


def _grpc_retry(retry: RetryPolicy) -> route_components_pb2.RetryPolicy:
    return route_components_pb2.RetryPolicy(
        retry_on=_codes(retry),
        num_retries={"value": max(1, retry.max_attempts - 1)},
        retry_back_off=_backoff(retry),
    )


def _routes(cluster: str, method: Method) -> Iterable[route_components_pb2.Route]:
    """The first that matches counts: calls that may be repeated, then all; JSON before gRPC; who has spent his last."""
    policy = method.policy
    if method.is_marked:
        yield _route(cluster, method, [_transcoded(), _present(REPEATABLE)], json=True, repeat=True)
        yield _route(cluster, method, [_present(REPEATABLE)], json=False, repeat=True)
    paid = [] if method.is_marked or not method.is_repeated else [_present(SPENT, not_so=True)]
    yield _route(cluster, method, [_transcoded(), *paid], json=True, repeat=policy.idempotent)
    yield _route(cluster, method, paid, json=False, repeat=policy.idempotent)
    if paid:  # the same calls without a budget; of methods that are marked, such calls are not
        yield _route(cluster, method, [_transcoded()], json=True, repeat=False)
        yield _route(cluster, method, [], json=False, repeat=False)


def _route(cluster: str, method: Method, headers: _Headers, *, json: bool, repeat: bool) -> route_components_pb2.Route:
    policy = method.policy
    route = route_components_pb2.Route(
        name=method.path,
        match=route_components_pb2.RouteMatch(path=method.path, headers=headers),
        route=route_components_pb2.RouteAction(
            cluster=cluster, retry_policy=_retry(policy, repeat=repeat, streaming=method.streaming)
        ),
        # A long query would be metadata beyond what a gRPC server takes, and is nobody's business there.
        request_headers_to_remove=[REPEATABLE, SPENT, _ORIGINAL_PATH],
        # The instance gives up when the caller does. A caller's own deadline stays as it is.
        request_headers_to_add=[_header("grpc-timeout", f"{round(policy.timeout * 1000)}m")],
        typed_per_filter_config=of_method(marked=method.is_marked, repeated=method.is_repeated),
    )
    if json:
        route.request_headers_to_add.append(_header(TRANSCODED, "1"))
    route.route.hash_policy.extend(hash_policies(policy.balancer))
    _limit(route.route, policy, json=json, streaming=method.streaming)
    _hedge(route.route, policy)
    return route


def _limit(action: route_components_pb2.RouteAction, policy: MethodPolicy, *, json: bool, streaming: bool) -> None:
    """Limit a call's time. JSON: the method's, then 504. gRPC: its caller's deadline, without one the method's."""
    if json and not streaming:
        action.timeout.CopyFrom(duration(policy.timeout))
        return
    action.timeout.CopyFrom(duration(0))
    action.max_stream_duration.max_stream_duration.CopyFrom(duration(policy.timeout))
    if not json:
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(duration(max(MAX_DEADLINE, policy.timeout)))
    if streaming:
        # Silence on a stream is no fault; the listener's limit on idle streams is meant for others.
        action.idle_timeout.CopyFrom(duration(policy.timeout))


def _retry(policy: MethodPolicy, *, repeat: bool, streaming: bool) -> route_components_pb2.RetryPolicy:
    retry = _hedging(policy) if repeat and policy.hedging.max_attempts > 1 else policy.retry
    # Python's gRPC server answers calls it has not yet accepted with CANCELLED when it stops (grpc/grpc #41785).
    again = f"{_UNPROCESSED},reset,cancelled,{_codes(retry)}".rstrip(",") if repeat else _UNPROCESSED
    if retry.max_attempts <= 1:
        return route_components_pb2.RetryPolicy(num_retries={"value": 0})
    message = route_components_pb2.RetryPolicy(
        retry_on=again,
        num_retries={"value": retry.max_attempts - 1},
        retry_back_off=_backoff(retry),
        retry_host_predicate=[
            route_components_pb2.RetryPolicy.RetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=pack(previous_hosts_pb2.PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=_PICKS,
    )
    limit = _attempt_time(policy)
    if repeat and not streaming and limit < policy.timeout:
        message.per_try_timeout.CopyFrom(duration(limit))
    return message


def _hedging(policy: MethodPolicy) -> RetryPolicy:
    """Hedging stands in the place of retries; Envoy pauses before each attempt all the same."""
    return policy.retry._replace(max_attempts=policy.hedging.max_attempts, codes=policy.hedging.codes)


def _attempt_time(policy: MethodPolicy) -> float:
    """Return the seconds after which an attempt is not waited for alone."""
    if policy.hedging.max_attempts > 1:
        return max(policy.hedging.delay, _SHORTEST)
    return policy.retry.attempt_timeout or max(policy.timeout * _HEDGE_AFTER, _HEDGE_AFTER_AT_LEAST)


def _hedge(action: route_components_pb2.RouteAction, policy: MethodPolicy) -> None:
    """Let an attempt go on beside the next, unless the policy wants it ended."""
    gives_up = policy.retry.attempt_timeout and policy.hedging.max_attempts <= 1
    if action.retry_policy.HasField("per_try_timeout") and not gives_up:
        action.hedge_policy.hedge_on_per_try_timeout = True


def _backoff(retry: RetryPolicy) -> route_components_pb2.RetryPolicy.RetryBackOff:
    return route_components_pb2.RetryPolicy.RetryBackOff(
        base_interval=duration(retry.initial_backoff),
        max_interval=duration(max(retry.max_backoff, retry.initial_backoff)),
    )


def _codes(retry: RetryPolicy) -> str:
    return ",".join(sorted(code.lower().replace("_", "-") for code in retry.codes & _RETRIABLE))


def _foreign(service: str) -> Iterable[route_components_pb2.Route]:
    """A service without a known contract: gRPC only, defaults, no repeats."""
    method = Method(f"/{service}/", streaming=True, policy=DEFAULT_POLICY)
    route = _route(service, method, [], json=False, repeat=False)
    route.match.prefix = method.path
    yield route


def _catch_all() -> Iterable[route_components_pb2.Route]:
    """Before the transcoder, a JSON call has one of these routes. Whoever still has it afterwards gets 404."""
    matcher = route_components_pb2.HeaderMatcher
    no_time = matcher(name="grpc-timeout", string_match={"safe_regex": {"regex": _TIME}}, invert_match=True)
    get = matcher(name=":method", string_match={"exact": "GET"})
    for headers, filters in (
        ([no_time], of_no_time()),
        ([get], of_catch_all(body=False)),
        ([], of_catch_all(body=True)),
    ):
        yield route_components_pb2.Route(
            match=route_components_pb2.RouteMatch(prefix="/", headers=headers),
            direct_response={"status": 404},
            typed_per_filter_config=filters,
        )


def _reflection(name: str) -> route_components_pb2.Route:
    route = route_components_pb2.Route(
        name=f"/{name}/",
        match=route_components_pb2.RouteMatch(prefix=f"/{name}/"),
        route=route_components_pb2.RouteAction(cluster=CONTROL_PLANE),
        typed_per_filter_config=of_method(marked=False, repeated=False),
    )
    route.route.timeout.CopyFrom(duration(0))
    route.route.max_stream_duration.max_stream_duration.CopyFrom(duration(60))
    return route


def _transcoded() -> route_components_pb2.HeaderMatcher:
    return _present(_ORIGINAL_PATH)


def _present(name: str, *, not_so: bool = False) -> route_components_pb2.HeaderMatcher:
    return route_components_pb2.HeaderMatcher(name=name, present_match=True, invert_match=not_so)


def _header(name: str, value: str) -> base_pb2.HeaderValueOption:
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, value=value), append_action=base_pb2.HeaderValueOption.ADD_IF_ABSENT
    )
