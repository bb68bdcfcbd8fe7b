"""The words of xDS that everything here uses: types, their order, and one resource as a value."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

_PREFIX = "type.googleapis.com/"
CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
ROUTES = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
EXTENSION = _PREFIX + "envoy.config.core.v3.TypedExtensionConfig"

# "Make before break": clusters, their endpoints, then listeners, then the routes that point at the clusters. The
# transcoder comes last: a JSON call must not be turned into a gRPC one that no route knows yet.
# https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#eventual-consistency-considerations
ORDER = (CLUSTER, ENDPOINTS, LISTENER, ROUTES, EXTENSION)

# "In the state-of-the-world variants, the response must contain all of the LDS and CDS resources that the client has
# subscribed to: what is left out is deleted." All other types may be sent one at a time.
# https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#deleting-resources
WHOLE = frozenset({CLUSTER, LISTENER})

# Names for metrics and logs.
SHORT = {CLUSTER: "CDS", ENDPOINTS: "EDS", LISTENER: "LDS", ROUTES: "RDS", EXTENSION: "ECDS"}

Reference = tuple[str, str]
"""A type and a name."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, ready to send.

    body: the message's bytes, deterministic.
    needs: the resources that must be there for this one to work.
    digest: of the body; two resources of equal digest are the same content.
    entry: what a DiscoveryResponse holds of it, its field "resources", as bytes that all clients' responses share.
    """

    type_url: str
    name: str
    body: bytes
    needs: tuple[Reference, ...] = ()
    digest: str = field(init=False)
    entry: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.body).hexdigest()[:16])
        wrapped = framed(_ANY_TYPE, self.type_url.encode()) + framed(_ANY_VALUE, self.body)
        object.__setattr__(self, "entry", framed(_RESOURCES, wrapped))

    @classmethod
    def of(cls, name: str, message: Message, *needs: Reference) -> Resource:
        """Wrap a message under the name that clients ask for."""
        body = message.SerializeToString(deterministic=True)
        return cls(_PREFIX + message.DESCRIPTOR.full_name, name, body, tuple(needs))


def pack(message: Message) -> AnyMessage:
    """Wrap a message as Any; the same message gives the same bytes in every process."""
    return AnyMessage(
        type_url=_PREFIX + message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )


def version_of(digests: dict[str, str]) -> str:
    """Return the version of a set of resources, from their content alone: equal on every replica."""
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def framed(number: int, body: bytes) -> bytes:
    """Return bytes as a field of a message: its key, its length, themselves.

    https://protobuf.dev/programming-guides/encoding/#length-types
    """
    return bytes([number << 3 | 2]) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


_RESOURCES = DiscoveryResponse.DESCRIPTOR.fields_by_name["resources"].number
_ANY_TYPE, _ANY_VALUE = (AnyMessage.DESCRIPTOR.fields_by_name[name].number for name in ("type_url", "value"))
