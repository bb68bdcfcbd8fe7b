"""EDS by hand is what protobuf makes."""

from __future__ import annotations

from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from mesh.instance import Endpoint, Instance
from mesh.xds.endpoints import endpoints
from mesh.xds.resources import ENDPOINTS, ORDER, Resource

S = "users.v1.UserService"

hosts = st.sampled_from(["10.0.0.1", "10.200.30.4", "[2001:db8::7]", "[::1]", "db.example"])
fleets = st.lists(
    st.builds(
        Instance,
        service=st.just(S),
        id=st.integers(0, 9999).map("i{}".format),
        endpoint=st.builds(Endpoint, hosts, st.integers(1, 65535)),
        zone=st.sampled_from(["", "a", "zürich", "z" * 200]),
        weight=st.integers(1, 1000),
    ),
    max_size=60,
    unique_by=lambda i: i.id,
)


@given(fleets)
def test_the_bytes_are_those_that_protobuf_makes(fleet: list[Instance]) -> None:
    resource = endpoints(S, fleet)
    message = ClusterLoadAssignment.FromString(resource.body)
    assert message.SerializeToString(deterministic=True) == resource.body
    assert resource.type_url.endswith(message.DESCRIPTOR.full_name)
    assert message.cluster_name == S


@given(fleets)
def test_every_numeric_address_is_there_once_with_its_weight_and_zone(fleet: list[Instance]) -> None:
    message = ClusterLoadAssignment.FromString(endpoints(S, fleet).body)
    told = [
        (e.endpoint.address.socket_address.address, e.endpoint.address.socket_address.port_value, group.locality.zone,
         e.load_balancing_weight.value)
        for group in message.endpoints
        for e in group.lb_endpoints
    ]  # fmt: skip
    wanted: dict[Endpoint, tuple[str, int, str, int]] = {}
    for i in sorted(fleet, key=lambda i: i.id):
        if i.endpoint.host != "db.example":
            wanted.setdefault(i.endpoint, (i.endpoint.host.strip("[]"), i.endpoint.port, i.zone, i.weight))
    assert sorted(told) == sorted(wanted.values())
    for group in message.endpoints:
        assert group.load_balancing_weight.value == sum(e.load_balancing_weight.value for e in group.lb_endpoints)


@given(fleets, st.randoms())
def test_the_order_in_which_instances_are_told_changes_nothing(fleet: list[Instance], dice: object) -> None:
    mixed = list(fleet)
    dice.shuffle(mixed)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert endpoints(S, mixed) == endpoints(S, fleet)


@given(st.lists(st.tuples(st.sampled_from(ORDER), st.binary(max_size=40_000)), max_size=4))
def test_a_response_put_together_from_entries_is_the_one_that_protobuf_makes(held: list[tuple[str, bytes]]) -> None:
    head = DiscoveryResponse(version_info="1", nonce="2", type_url=ENDPOINTS)
    entries = [Resource(type_url, "any", body).entry for type_url, body in held]
    whole = DiscoveryResponse(resources=[Any(type_url=type_url, value=body) for type_url, body in held])
    whole.MergeFrom(head)
    assert DiscoveryResponse.FromString(b"".join([head.SerializeToString(), *entries])) == whole
