"""Odd clients of the control plane: answered, ignored or closed, never a crash, and the next client is served."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.ads_pb2_grpc import AggregatedDiscoveryServiceStub
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from support.entrances import channel
from support.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
ENVOY = Node(id="odd", cluster="front", user_agent_name="envoy")


class Stream:
    """One ADS stream, requests put and answers taken."""

    def __init__(self, to: grpc.Channel) -> None:
        self._requests: queue.SimpleQueue[DiscoveryRequest | None] = queue.SimpleQueue()
        self.call = AggregatedDiscoveryServiceStub(to).StreamAggregatedResources(self._send(), timeout=20)

    def _send(self) -> Iterator[DiscoveryRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def ask(self, **fields: object) -> None:
        """Send a request."""
        self._requests.put(DiscoveryRequest(**fields))  # type: ignore[arg-type]  # fields of many types

    def answer(self) -> DiscoveryResponse:
        """Take the next answer."""
        return next(self.call)

    def close(self) -> None:
        """End the stream."""
        self._requests.put(None)
        self.call.cancel()


@pytest.fixture
def stream(stack: Stack) -> Iterator[Stream]:
    """A stream to the control plane."""
    with channel(stack.control_plane) as to:
        opened = Stream(to)
        yield opened
        opened.close()


def test_stream_without_a_node_id_is_closed(stream: Stream) -> None:
    stream.ask(type_url=CLUSTER)

    with pytest.raises(grpc.RpcError) as closed:
        stream.answer()

    assert closed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert closed.value.details()


def test_unknown_type_is_ignored_or_closed_and_known_ones_are_served(stream: Stream, stack: Stack) -> None:
    stream.ask(node=ENVOY, type_url="type.googleapis.com/no.such.Type")
    stream.ask(type_url=CLUSTER)
    try:
        assert stream.answer().type_url == CLUSTER
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017  one of two right answers

    with channel(stack.control_plane) as to:
        other = Stream(to)
        other.ask(node=ENVOY, type_url=CLUSTER)
        assert other.answer().resources
        other.close()


def test_stale_nonce_is_not_answered(stream: Stream) -> None:
    stream.ask(node=ENVOY, type_url=CLUSTER)
    first = stream.answer()
    stream.ask(type_url=CLUSTER, version_info=first.version_info, response_nonce="stale")
    stream.ask(type_url=ENDPOINTS, resource_names=["users.v1.UserService"])

    # The next answer is to the second request: the first got none.
    assert stream.answer().type_url == ENDPOINTS


def test_thousands_of_names_are_bounded(stream: Stream, stack: Stack) -> None:
    names = [f"no.such.Service{number}" for number in range(20_000)]
    stream.ask(node=ENVOY, type_url=ENDPOINTS, resource_names=[*names, "users.v1.UserService"])
    try:
        assert len(stream.answer().resources) <= 1
    except grpc.RpcError as e:
        assert e.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)  # noqa: PT017  as above

    with channel(stack.control_plane) as to:
        other = Stream(to)
        other.ask(node=ENVOY, type_url=CLUSTER)
        assert other.answer().resources
        other.close()
