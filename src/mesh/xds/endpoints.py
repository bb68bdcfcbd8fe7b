"""EDS: the instances of a service as endpoints. One message for Envoy and gRPC alike.

A service has all its endpoints in one resource, so one change among ten thousand makes all of it anew. What an instance
becomes is therefore kept as bytes, and the message is put together from them by hand: the test beside it holds
that these are the bytes which protobuf makes. `assignment` puts together what a change leaves as it was.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import defaultdict
from collections.abc import Iterable
from operator import attrgetter

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from mesh.instance import Endpoint, Instance
from mesh.xds.resources import Resource, framed

# Instances whose bytes are kept. Each costs about 300 bytes; one that is not kept costs 15 µs when it is needed again.
_KEPT = 65_536


def is_numeric(endpoint: Endpoint) -> bool:
    """Return whether the endpoint's host is an IP address: all that EDS allows."""
    return _is_address(endpoint.host)


def endpoints(service: str, instances: Iterable[Instance]) -> Resource:
    """Build the service's endpoints, a locality for each zone.

    Instances without a numeric address are left out, and so is a second one at the same address, which gRPC refuses.
    """
    zones: dict[str, list[Instance]] = defaultdict(list)
    seen: set[tuple[str, int]] = set()
    for instance in sorted(instances, key=attrgetter("id")):
        address = instance.endpoint.host, instance.endpoint.port
        if address not in seen and _is_address(address[0]):
            seen.add(address)
            zones[instance.zone].append(instance)
    return resource(service, [(zone, _locality(zone, zones[zone])) for zone in zones])


def resource(service: str, localities: Iterable[tuple[str, bytes]]) -> Resource:
    """Put localities together, in the order of their zones."""
    head = endpoint_pb2.ClusterLoadAssignment(cluster_name=service).SerializeToString(deterministic=True)
    return Resource(
        _TYPE_URL, service, b"".join([head, *(framed(_LOCALITIES, body) for _, body in sorted(localities))])
    )


def locality(zone: str, parts: Iterable[bytes], weight: int) -> bytes:
    """Put the parts of a zone's instances together. `weight`: the sum of theirs."""
    start = endpoint_components_pb2.LocalityLbEndpoints(locality=base_pb2.Locality(zone=zone))
    # gRPC leaves out a locality without a weight (gRFC A27); Envoy does not look at it.
    end = endpoint_components_pb2.LocalityLbEndpoints(load_balancing_weight={"value": weight})
    return b"".join([start.SerializeToString(deterministic=True), *parts, end.SerializeToString(deterministic=True)])


def part(instance: Instance) -> bytes:
    """Return an instance as a field of its locality."""
    return _endpoint(instance.endpoint.host, instance.endpoint.port, instance.weight)


def _locality(zone: str, instances: list[Instance]) -> bytes:
    return locality(zone, map(part, instances), sum(max(1, i.weight) for i in instances))


@functools.lru_cache(maxsize=_KEPT)
def _endpoint(host: str, port: int, weight: int) -> bytes:
    host = host.strip("[]")
    address = address_pb2.SocketAddress(address=host, port_value=port)
    message = endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(
            address=address_pb2.Address(socket_address=address),
            # Names the peer in TLS: its certificate must carry this address.
            hostname=host,
        ),
        load_balancing_weight={"value": max(1, weight)},
    )
    return framed(_ENDPOINTS, message.SerializeToString(deterministic=True))


@functools.lru_cache(maxsize=_KEPT)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


_TYPE_URL = "type.googleapis.com/" + endpoint_pb2.ClusterLoadAssignment.DESCRIPTOR.full_name
_LOCALITIES = endpoint_pb2.ClusterLoadAssignment.DESCRIPTOR.fields_by_name["endpoints"].number
_ENDPOINTS = endpoint_components_pb2.LocalityLbEndpoints.DESCRIPTOR.fields_by_name["lb_endpoints"].number
