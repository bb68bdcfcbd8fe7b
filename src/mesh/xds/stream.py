"""One ADS stream, state of the world: what a client asked for, what it has, what it is to be sent now.

The rules, from https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol :

- A client asks per type, by names; LDS and CDS without names in the first request mean all ("wildcard").
- Each response carries a nonce. A request with the last nonce answers that response: without `error_detail` it is an
ACK, with one a NACK. "The management server should not send a DiscoveryResponse for any DiscoveryRequest that has a
stale nonce."
- A request may change the names at the same time; there is no difference between asking and answering but the nonce.

How it works: each type remembers the digest of every resource sent on this stream, so what is due is a comparison with
the snapshot, and the same content is never sent twice. One response per type is in flight: until it is answered,
changes gather. After a NACK the same content waits until it changes; where a type can be sent in parts, the parts of
a refused response are sent one by one, so that one bad resource does not hold back the others.

Left out: the delta protocol, and resources that are deleted one by one.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.errors import MeshError
from mesh.xds.resources import CLUSTER, ENDPOINTS, ORDER, WHOLE, Resource, version_of
from mesh.xds.snapshot import Audience, Snapshot

# An Envoy asks for as many endpoints as there are services. More than this is a fault of the client, and names cost
# memory here for as long as the stream lives.
MAX_NAMES = 5000
_MAX_NAME_LENGTH = 512


class InvalidRequest(MeshError):
    """The client breaks the protocol; the stream ends with INVALID_ARGUMENT and this text."""


class Outcome(enum.StrEnum):
    """What a request was."""

    SUBSCRIBED = "subscribed"
    ACKED = "acked"
    REFUSED = "refused"
    STALE = "stale_nonce"
    UNKNOWN_TYPE = "unknown_type"


@dataclass(frozen=True, slots=True)
class Request:
    """What we look at in a DiscoveryRequest. `error`: the message of `error_detail`, None where there is none."""

    type_url: str
    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    error: str | None = None
    node_id: str = ""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """What goes into a DiscoveryResponse."""

    type_url: str
    version: str
    nonce: str
    resources: tuple[Resource, ...]


@dataclass(slots=True)
class _Watch:
    """One type on this stream."""

    said: tuple[str, ...] | None = None
    """The names in its last request."""
    names: tuple[str, ...] | None = ()
    """What these come to, sorted. None: all."""
    named: bool = False
    """Whether it ever asked by name."""
    claimed: str = ""
    """The version that the client brought along from a stream before."""
    sent: dict[str, str] = field(default_factory=dict)
    """Digests by name, of what the client has accepted or is looking at."""
    refused: dict[str, str] = field(default_factory=dict)
    """Digests by name, of what it would not have."""
    alone: list[str] = field(default_factory=list)
    """To be sent one by one, after a response of several was refused."""
    in_flight: tuple[Resource, ...] | None = None
    settled: Mapping[str, Resource] | None = None
    """What there was when nothing was due. While that is so, and the client says nothing, nothing is."""
    nonce: str = ""
    version: str = ""

    def asked(self, snapshot: Snapshot, type_url: str) -> dict[str, Resource]:
        everything = snapshot.all(type_url)
        if self.names is None:
            return dict(everything)
        return {name: everything[name] for name in self.names if name in everything}

    def state(self, asked: dict[str, Resource]) -> dict[str, str]:
        """Digests of what there is; an absence asked for by name is part of it."""
        return dict.fromkeys(self.names or (), "") | {name: r.digest for name, r in asked.items()}


class Stream:
    """One client on one stream. Everything is changed by `receive` and `due`, by one task at a time."""

    def __init__(self) -> None:
        self.node_id = ""
        self.audience = Audience.ENVOY
        self._watches: dict[str, _Watch] = {}
        self._count = 0

    def __repr__(self) -> str:
        return f"Stream({self.node_id!r}, {self.audience}, {self._watches})"

    def receive(self, request: Request) -> Outcome:
        """Take a request into account; raise InvalidRequest if it breaks the protocol."""
        self._identify(request)
        if request.type_url not in ORDER:
            return Outcome.UNKNOWN_TYPE
        if len(request.names) > MAX_NAMES:
            raise InvalidRequest(f"{len(request.names)} names in one request; {MAX_NAMES} are the most")
        if any(len(name) > _MAX_NAME_LENGTH for name in request.names):
            raise InvalidRequest(f"a resource name of more than {_MAX_NAME_LENGTH} characters")
        watch = self._watches.get(request.type_url)
        if request.nonce and (watch is None or request.nonce != watch.nonce):
            return Outcome.STALE
        if watch is None:
            claimed = request.version if self._lasts(request.type_url) else ""
            watch = self._watches[request.type_url] = _Watch(claimed=claimed)
        watch.settled = None
        outcome = self._answered(request, watch) if request.nonce else Outcome.SUBSCRIBED
        self._subscribe(request, watch)
        return outcome

    def due(self, snapshot: Snapshot) -> list[Response]:
        """Return what is to be sent now, in the order of types, and remember it as sent."""
        responses = []
        for type_url in ORDER:
            watch = self._watches.get(type_url)
            if watch is None or watch.in_flight is not None or watch.settled == snapshot.all(type_url):
                continue
            news = (
                self._whole(watch, snapshot, type_url) if type_url in WHOLE else self._parts(watch, snapshot, type_url)
            )
            if news is None:
                watch.settled = snapshot.all(type_url)
                continue
            responses.append(self._send(watch, type_url, news))
        return responses

    def _identify(self, request: Request) -> None:
        # "Only the first request on a stream is guaranteed to carry the node identifier."
        if not self.node_id:
            if not request.node_id:
                raise InvalidRequest("the first request on a stream must carry node.id")
            if len(request.node_id) > _MAX_NAME_LENGTH:
                raise InvalidRequest(f"node.id is longer than {_MAX_NAME_LENGTH} characters")
            self.node_id = request.node_id
            self.audience = Audience.of(request.user_agent)

    def _lasts(self, type_url: str) -> bool:
        # A version that a client brings along says what it accepted last, not what it still has: one that dropped a
        # cluster and was told of it again has lost the endpoints, under the version from before. So a claim is believed
        # for what is sent whole, and for what Envoy's own file names for ever; endpoints are sent once on each stream.
        # Envoy takes the same endpoints again without any change.
        return type_url in WHOLE or (self.audience is Audience.ENVOY and type_url != ENDPOINTS)

    def _answered(self, request: Request, watch: _Watch) -> Outcome:
        flown, watch.in_flight = watch.in_flight, None
        if request.error is None:
            return Outcome.ACKED if flown is not None else Outcome.SUBSCRIBED
        for resource in flown or ():
            watch.sent.pop(resource.name, None)
            watch.refused[resource.name] = resource.digest
        if flown is not None and len(flown) > 1 and request.type_url not in WHOLE:
            watch.alone = [resource.name for resource in flown]
        return Outcome.REFUSED

    def _subscribe(self, request: Request, watch: _Watch) -> None:
        if request.names == watch.said:  # as in every answer of an Envoy
            return
        watch.said, names = request.names, frozenset(request.names)
        # "If a client sends a request of LDS or CDS without names, the server treats it as a wildcard; once a client
        # has named resources, an empty list means none."
        wildcard = "*" in names or (not names and request.type_url in WHOLE and not watch.named)
        watch.named = watch.named or bool(names)
        watch.names = None if wildcard else tuple(sorted(names))
        if not wildcard:
            for name in watch.sent.keys() - names:
                del watch.sent[name]
            for name in watch.refused.keys() - names:
                del watch.refused[name]

    def _whole(self, watch: _Watch, snapshot: Snapshot, type_url: str) -> tuple[Resource, ...] | None:
        """All resources if any of them, or their set, is news."""
        asked = watch.asked(snapshot, type_url)
        state = watch.state(asked)
        version = version_of(state)
        claimed, watch.claimed = watch.claimed, ""
        if version in (watch.version, claimed):
            if version == claimed:
                watch.version, watch.sent = version, state
            return None
        if type_url == CLUSTER:
            self._endpoints_again({name for name, digest in state.items() if watch.sent.get(name) != digest})
        watch.version, watch.sent = version, state
        return tuple(asked.values())

    def _parts(self, watch: _Watch, snapshot: Snapshot, type_url: str) -> tuple[Resource, ...] | None:
        """The resources that are news."""
        asked = watch.asked(snapshot, type_url)
        state = {name: r.digest for name, r in asked.items()}
        claimed, watch.claimed = watch.claimed, ""
        if claimed and claimed == version_of(state):
            watch.version, watch.sent = claimed, state
            return None
        for name in watch.sent.keys() - asked.keys():
            del watch.sent[name]
        news = {name: r for name, r in asked.items() if watch.sent.get(name) != r.digest}
        while watch.alone:
            name = watch.alone.pop(0)
            if name in news and watch.refused.get(name) == news[name].digest:
                return self._take(watch, state, (news[name],))
        fresh = tuple(r for name, r in news.items() if watch.refused.get(name) != r.digest)
        return self._take(watch, state, fresh) if fresh else None

    def _take(self, watch: _Watch, state: dict[str, str], news: tuple[Resource, ...]) -> tuple[Resource, ...]:
        watch.version = version_of(state)
        for resource in news:
            watch.sent[resource.name] = resource.digest
        return news

    def _endpoints_again(self, clusters: set[str]) -> None:
        # "Cluster warming": a cluster that is new or changed waits for an EDS answer, even if the endpoints are the
        # same. https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#resource-warming
        watch = self._watches.get(ENDPOINTS)
        if watch is not None:
            watch.claimed, watch.settled = "", None
            for name in clusters:
                watch.sent.pop(name, None)

    def _send(self, watch: _Watch, type_url: str, news: tuple[Resource, ...]) -> Response:
        self._count += 1
        watch.nonce, watch.in_flight = str(self._count), news
        return Response(type_url, watch.version, watch.nonce, news)
