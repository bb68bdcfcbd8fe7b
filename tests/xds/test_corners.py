"""What the machines of xDS do in rare cases, and the resources that are the same for every service."""

from __future__ import annotations

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.http.grpc_json_transcoder.v3.transcoder_pb2 import GrpcJsonTranscoder
from envoy.extensions.filters.http.lua.v3.lua_pb2 import Lua
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext

from mesh.instance import Endpoint, Instance, View
from mesh.xds.clusters import cluster_for_grpc
from mesh.xds.listeners import listener_for_grpc
from mesh.xds.resources import CLUSTER, ENDPOINTS, EXTENSION, ROUTES, Resource
from mesh.xds.retention import Retention
from mesh.xds.routes import CONTROL_PLANE, routes_for_envoy
from mesh.xds.scripts import script
from mesh.xds.snapshot import Snapshot
from mesh.xds.stream import InvalidRequest, Outcome, Request, Stream
from mesh.xds.transcoder import TRANSCODER, transcoder
from support.routes import routes_in

S = "a.v1.B"


def endpoints_of(*names: str, content: int = 0) -> Snapshot:
    return Snapshot.of([Resource(ENDPOINTS, name, f"{name}={content}".encode()) for name in names])


def ask(*names: str, version: str = "") -> Request:
    return Request(ENDPOINTS, names, version=version, node_id="node", user_agent="gRPC C-core")


def test_a_node_of_an_endless_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="longer than"):
        Stream().receive(Request(CLUSTER, node_id="n" * 100_000))


def test_a_stream_tells_who_is_on_it() -> None:
    stream = Stream()
    stream.receive(ask("a"))
    assert "'node'" in repr(stream)


def test_a_refused_name_that_is_no_longer_asked_for_is_forgotten() -> None:
    stream, there = Stream(), endpoints_of("a", "b")
    stream.receive(ask("a", "b"))
    [sent] = stream.due(there)
    stream.receive(Request(ENDPOINTS, ("b",), sent.version, sent.nonce, "no"))
    [alone] = stream.due(there)
    assert [r.name for r in alone.resources] == ["b"]
    stream.receive(Request(ENDPOINTS, ("a", "b"), alone.version, alone.nonce, None))
    [again] = stream.due(there)
    assert [r.name for r in again.resources] == ["a"]


def test_a_refused_resource_that_changed_meanwhile_is_not_tried_alone() -> None:
    stream = Stream()
    stream.receive(ask("a", "b"))
    [sent] = stream.due(endpoints_of("a", "b"))
    stream.receive(Request(ENDPOINTS, ("a", "b"), sent.version, sent.nonce, "no"))
    [fresh] = stream.due(endpoints_of("a", "b", content=1))
    assert [r.name for r in fresh.resources] == ["a", "b"]


def test_envoys_own_filters_are_not_sent_again_to_one_that_has_them() -> None:
    there = Snapshot.of([script("strict", "-- nothing")])
    [resource] = there.all(EXTENSION).values()
    first = Stream()
    first.receive(Request(EXTENSION, (resource.name,), node_id="node", user_agent="envoy"))
    [sent] = first.due(there)
    second = Stream()
    second.receive(Request(EXTENSION, (resource.name,), sent.version, node_id="node", user_agent="envoy"))
    assert second.due(there) == []
    assert second.receive(Request(EXTENSION, (resource.name, "more"), sent.version)) is Outcome.SUBSCRIBED


def test_what_is_kept_of_a_service_can_be_read() -> None:
    kept = Retention()
    both = [Instance(S, f"i{n}", Endpoint("10.0.0.1", n)) for n in (1, 2)]
    kept.observe(View.of(S, both))
    kept.observe(View.of(S, []))
    assert [i.id for i in kept.suspects] == ["i1", "i2"]
    assert repr(kept) == "Retention(believed=[], suspects=['i1', 'i2'])"


def test_the_listener_of_a_service_leads_to_its_routes() -> None:
    resource = listener_for_grpc(S)
    connections = HttpConnectionManager()
    assert Listener.FromString(resource.body).api_listener.api_listener.Unpack(connections)
    assert (resource.needs, connections.rds.route_config_name) == (((ROUTES, S),), S)


def test_a_script_and_the_transcoder_are_extensions_of_their_names() -> None:
    lua, transcoding = Lua(), GrpcJsonTranscoder()
    made = TypedExtensionConfig.FromString(script("strict", "-- nothing").body)
    assert made.typed_config.Unpack(lua)
    assert (made.name, lua.default_source_code.inline_string) == ("strict", "-- nothing")
    made = TypedExtensionConfig.FromString(transcoder(b"descriptors", [S]).body)
    assert made.typed_config.Unpack(transcoding)
    assert (made.name, list(transcoding.services)) == (TRANSCODER, [S])
    assert transcoding.request_validation_options.reject_unknown_query_parameters


def test_the_fronts_reflection_is_the_control_planes() -> None:
    routes = routes_in(routes_for_envoy([], reflection=True).body)
    found = {route.match.prefix: route.route.cluster for route in routes if route.route.cluster}
    assert found == {f"/grpc.reflection.{v}.ServerReflection/": CONTROL_PLANE for v in ("v1", "v1alpha")}


def test_grpc_takes_its_certificates_from_the_provider_in_its_bootstrap() -> None:
    context = UpstreamTlsContext()
    cluster = Cluster.FromString(cluster_for_grpc(S, "mine").body)
    assert cluster.transport_socket.typed_config.Unpack(context)
    assert context.common_tls_context.tls_certificate_provider_instance.instance_name == "mine"
