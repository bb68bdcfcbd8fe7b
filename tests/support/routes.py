"""Routes as the front is told them, in a row again."""

from __future__ import annotations

from typing import Any

from envoy.config.route.v3.route_components_pb2 import RouteList
from envoy.config.route.v3.route_pb2 import RouteConfiguration


def routes_in(body: bytes) -> list[Any]:
    """Return the routes of a resource: those of its paths, then those for the rest."""
    [host] = RouteConfiguration.FromString(body).virtual_hosts
    found = list(host.routes)
    if host.HasField("matcher"):
        leaves = host.matcher.matcher_tree.exact_match_map.map
        for leaf in (*(leaves[path] for path in sorted(leaves)), host.matcher.on_no_match):
            routes = RouteList()
            assert leaf.action.typed_config.Unpack(routes)
            found.extend(routes.routes)
    return found
