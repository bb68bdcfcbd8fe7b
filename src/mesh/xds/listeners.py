"""LDS for gRPC's own client: `xds:///<service>` asks for a listener of the service's name (gRFC A27)."""

from __future__ import annotations

from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

from mesh.xds.clusters import over_ads
from mesh.xds.resources import ROUTES, Resource, pack


def listener_for_grpc(service: str) -> Resource:
    """Build the listener that points at the service's routes."""
    connections = http_connection_manager_pb2.HttpConnectionManager(
        rds=http_connection_manager_pb2.Rds(config_source=over_ads(), route_config_name=service),
        http_filters=[
            http_connection_manager_pb2.HttpFilter(
                # gRFC A39: the last filter must be the router.
                name="envoy.filters.http.router",
                typed_config=pack(router_pb2.Router()),
            )
        ],
    )
    message = listener_pb2.Listener(
        name=service, api_listener=api_listener_pb2.ApiListener(api_listener=pack(connections))
    )
    return Resource.of(service, message, (ROUTES, service))
