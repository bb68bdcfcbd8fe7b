"""EDS: the instances of a service as endpoints. One message for Envoy and gRPC alike."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from mesh.instance import Endpoint, Instance
from mesh.xds.resources import Resource


def is_numeric(endpoint: Endpoint) -> bool:
    """Return whether the endpoint's host is an IP address: all that EDS allows."""
    try:
        ipaddress.ip_address(endpoint.host.strip("[]"))
    except ValueError:
        return False
    return True


def endpoints(service: str, instances: Iterable[Instance]) -> Resource:
    """Build the service's endpoints, a locality for each zone.

    Instances without a numeric address are left out, and so is a second one at the same address, which gRPC refuses.
    """
    zones: dict[str, dict[Endpoint, Instance]] = defaultdict(dict)
    seen: set[Endpoint] = set()
    for instance in sorted(instances, key=lambda i: (i.endpoint, i.id)):
        if is_numeric(instance.endpoint) and instance.endpoint not in seen:
            seen.add(instance.endpoint)
            zones[instance.zone][instance.endpoint] = instance
    message = endpoint_pb2.ClusterLoadAssignment(
        cluster_name=service,
        endpoints=[_locality(zone, list(zones[zone].values())) for zone in sorted(zones)],
    )
    return Resource.of(service, message)


def _locality(zone: str, instances: list[Instance]) -> endpoint_components_pb2.LocalityLbEndpoints:
    return endpoint_components_pb2.LocalityLbEndpoints(
        locality=base_pb2.Locality(zone=zone),
        lb_endpoints=[_endpoint(i) for i in instances],
        # gRPC leaves out a locality without a weight (gRFC A27); Envoy does not look at it.
        load_balancing_weight={"value": sum(max(1, i.weight) for i in instances)},
    )


def _endpoint(instance: Instance) -> endpoint_components_pb2.LbEndpoint:
    address = address_pb2.SocketAddress(address=instance.endpoint.host.strip("[]"), port_value=instance.endpoint.port)
    return endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(
            address=address_pb2.Address(socket_address=address),
            # Names the peer in TLS: its certificate must carry this address.
            hostname=instance.endpoint.host.strip("[]"),
        ),
        load_balancing_weight={"value": max(1, instance.weight)},
    )
