"""A virtual host's routes by path: one look finds a method's, however many the mesh has.

Envoy looks through a list of routes from its beginning, for a JSON call twice: before the transcoder, where it passes
all of them, and behind it.
https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/matching/matching_api#sublinear-route-matching
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from google.protobuf.message import Message
from xds.core.v3 import extension_pb2
from xds.type.matcher.v3 import matcher_pb2

from mesh.xds.resources import pack

_Routes = Iterable[route_components_pb2.Route]


def place(host: route_components_pb2.VirtualHost, methods: Mapping[str, _Routes], rest: _Routes) -> None:
    """Give a host its routes: those of each path, the last of which takes all calls; and the rest for other paths.

    A path is as the caller wrote it, its query included: that of a gRPC call has none.
    """
    if not methods:  # a tree without a leaf is refused
        host.routes.extend(rest)
        return
    path = http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=":path")
    host.matcher.matcher_tree.input.CopyFrom(_named("path", path))
    leaves = host.matcher.matcher_tree.exact_match_map.map
    for name, routes in methods.items():
        leaves[name].CopyFrom(_in_turn(routes))
    host.matcher.on_no_match.CopyFrom(_in_turn(rest))


def _in_turn(routes: _Routes) -> matcher_pb2.Matcher.OnMatch:
    return matcher_pb2.Matcher.OnMatch(action=_named("routes", route_components_pb2.RouteList(routes=routes)))


def _named(name: str, message: Message) -> extension_pb2.TypedExtensionConfig:
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(message))
