"""The stream machine: what is sent on an ADS stream, and when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.xds.resources import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ORDER, ROUTES, WHOLE, Resource
from mesh.xds.snapshot import Audience, Snapshot
from mesh.xds.stream import MAX_NAMES, InvalidRequest, Outcome, Request, Response, Stream


def resource(type_url: str, name: str, content: int = 0) -> Resource:
    return Resource(type_url, name, f"{name}={content}".encode())


def snapshot(**clusters: int) -> Snapshot:
    """Clusters and their endpoints of some content."""
    return Snapshot.of(
        [
            *(resource(CLUSTER, name) for name in clusters),
            *(resource(ENDPOINTS, name, content) for name, content in clusters.items()),
        ]
    )


def ask(type_url: str, *names: str, version: str = "", agent: str = "envoy") -> Request:
    return Request(type_url, names, version=version, node_id="node", user_agent=agent)


def answer(response: Response, *names: str, error: str | None = None) -> Request:
    return Request(response.type_url, names, response.version, response.nonce, error)


def names(response: Response) -> list[str]:
    return [r.name for r in response.resources]


def test_first_request_without_a_node_is_invalid() -> None:
    with pytest.raises(InvalidRequest, match=r"node\.id"):
        Stream().receive(Request(CLUSTER))


def test_later_requests_need_no_node() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER))

    assert stream.receive(Request(ENDPOINTS, ("a",))) is Outcome.SUBSCRIBED
    assert stream.node_id == "node"


def test_audience_is_told_by_the_user_agent() -> None:
    for agent, audience in {
        "envoy": Audience.ENVOY,
        "gRPC C-core": Audience.GRPC,
        "grpc-go": Audience.GRPC,
        "gRPC Go": Audience.GRPC,
        "": Audience.ENVOY,
    }.items():
        stream = Stream()
        stream.receive(ask(CLUSTER, agent=agent))
        assert stream.audience is audience


def test_unknown_type_is_ignored() -> None:
    stream = Stream()

    assert stream.receive(ask("type.googleapis.com/no.such.Type", "a")) is Outcome.UNKNOWN_TYPE
    assert stream.due(snapshot(a=1)) == []


@pytest.mark.parametrize("count", [MAX_NAMES + 1, 20_000])
def test_too_many_names_are_invalid(count: int) -> None:
    with pytest.raises(InvalidRequest):
        Stream().receive(ask(ENDPOINTS, *map(str, range(count))))


def test_name_that_is_too_long_is_invalid() -> None:
    with pytest.raises(InvalidRequest):
        Stream().receive(ask(ENDPOINTS, "x" * 513))


def test_clusters_without_names_are_all_clusters() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER))

    [response] = stream.due(snapshot(a=1, b=1))

    assert names(response) == ["a", "b"]


def test_endpoints_without_names_are_none() -> None:
    stream = Stream()
    stream.receive(ask(ENDPOINTS))

    assert stream.due(snapshot(a=1)) == []


def test_empty_mesh_is_told_to_who_asks_for_all() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER))

    [response] = stream.due(Snapshot())

    assert response.resources == ()


def test_same_content_is_not_sent_again() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER))
    [response] = stream.due(snapshot(a=1))
    assert stream.receive(answer(response)) is Outcome.ACKED

    assert stream.due(snapshot(a=1)) == []
    assert stream.due(snapshot(a=2)) == []  # other endpoints, same clusters


def test_only_the_changed_endpoints_are_sent() -> None:
    stream = Stream()
    stream.receive(ask(ENDPOINTS, "a", "b"))
    [response] = stream.due(snapshot(a=1, b=1))
    stream.receive(answer(response, "a", "b"))

    [response] = stream.due(snapshot(a=1, b=2))

    assert names(response) == ["b"]


def test_content_that_comes_back_after_nothing_was_due_is_sent_again() -> None:
    stream = Stream()
    stream.receive(ask(ENDPOINTS, "a"))
    for content in (1, 2, 1, 2):
        [response] = stream.due(snapshot(a=content))
        stream.receive(answer(response, "a"))
        assert stream.due(snapshot(a=content)) == stream.due(snapshot(a=content)) == []


def test_clusters_are_always_sent_whole() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER))
    [response] = stream.due(snapshot(a=1, b=1))
    stream.receive(answer(response))

    [response] = stream.due(snapshot(a=1, b=1, c=1))

    assert names(response) == ["a", "b", "c"]


def test_types_are_sent_in_their_order() -> None:
    stream = Stream()
    everything = Snapshot.of(resource(kind, "a") for kind in ORDER)
    for kind in (EXTENSION, ROUTES, LISTENER, ENDPOINTS, CLUSTER):
        stream.receive(ask(kind, "a"))

    assert tuple(r.type_url for r in stream.due(everything)) == ORDER


def test_nothing_more_of_a_type_is_sent_before_the_answer() -> None:
    stream = Stream()
    stream.receive(ask(ENDPOINTS, "a"))
    [first] = stream.due(snapshot(a=1))

    assert stream.due(snapshot(a=2)) == []
    stream.receive(answer(first, "a"))
    [second] = stream.due(snapshot(a=3))

    assert second.resources[0].body == b"a=3"


def test_stale_nonce_is_ignored() -> None:
    stream = Stream()
    stream.receive(ask(ENDPOINTS, "a"))
    [first] = stream.due(snapshot(a=1))
    stream.receive(answer(first, "a"))
    [second] = stream.due(snapshot(a=2))

    assert stream.receive(answer(first, "a", "b")) is Outcome.STALE
    assert stream.due(snapshot(a=3, b=1)) == []
    assert stream.receive(answer(second, "a")) is Outcome.ACKED


def test_nonce_of_another_stream_is_ignored() -> None:
    stream = Stream()

    assert stream.receive(Request(CLUSTER, nonce="7", node_id="node")) is Outcome.STALE


def test_refused_content_waits_until_it_changes() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER))
    [response] = stream.due(snapshot(a=1))

    assert stream.receive(answer(response, error="no")) is Outcome.REFUSED
    assert stream.due(snapshot(a=1)) == []
    assert len(stream.due(snapshot(a=1, b=1))) == 1


def test_parts_of_a_refused_response_are_sent_one_by_one() -> None:
    stream = Stream()
    stream.receive(ask(ENDPOINTS, "a", "bad", "c"))
    state = snapshot(a=1, bad=1, c=1)
    [response] = stream.due(state)
    stream.receive(answer(response, "a", "bad", "c", error="no"))
    told = []
    while due := stream.due(state):
        [response] = due
        told.append(names(response))
        stream.receive(answer(response, "a", "bad", "c", error="no" if names(response) == ["bad"] else None))

    assert told == [["a"], ["bad"], ["c"]]
    [response] = stream.due(snapshot(a=2, bad=1, c=1))
    assert names(response) == ["a"]


def test_client_that_brings_the_present_version_is_sent_endpoints_and_nothing_else() -> None:
    first = Stream()
    first.receive(ask(CLUSTER))
    first.receive(ask(ENDPOINTS, "a"))
    state = snapshot(a=1)
    versions = {r.type_url: r.version for r in first.due(state)}

    again = Stream()
    again.receive(ask(CLUSTER, version=versions[CLUSTER]))
    again.receive(ask(ENDPOINTS, "a", version=versions[ENDPOINTS]))

    assert [r.type_url for r in again.due(state)] == [ENDPOINTS]


def test_endpoints_that_a_client_dropped_and_was_told_of_again_are_sent_whatever_version_it_brings() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER))
    stream.receive(ask(ENDPOINTS, "b"))
    accepted = {r.type_url: r.version for r in stream.due(snapshot(b=0))}
    # The cluster goes and comes again on streams that break before its endpoints do: their version stays.
    again = Stream()
    again.receive(ask(CLUSTER, version=accepted[CLUSTER]))
    again.receive(ask(ENDPOINTS, "b", version=accepted[ENDPOINTS]))

    assert [names(r) for r in again.due(snapshot(b=0))] == [["b"]]


def test_client_that_brings_an_old_version_is_sent_the_present_one() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER, version="old"))

    assert len(stream.due(snapshot(a=1))) == 1


def test_new_cluster_gets_its_endpoints_even_if_they_were_sent_before() -> None:
    stream = Stream()
    stream.receive(ask(CLUSTER))
    stream.receive(ask(ENDPOINTS, "a"))
    before = snapshot(a=1)
    for response in stream.due(before):
        stream.receive(answer(response, *(["a"] if response.type_url == ENDPOINTS else [])))
    changed = Snapshot.of([resource(CLUSTER, "a", content=2), resource(ENDPOINTS, "a", content=1)])

    assert [r.type_url for r in stream.due(changed)] == [CLUSTER, ENDPOINTS]


def test_absence_of_what_was_asked_by_name_is_told_for_whole_types() -> None:
    stream = Stream()
    stream.receive(ask(LISTENER, "a", agent="gRPC"))

    [response] = stream.due(Snapshot())
    assert response.resources == ()
    stream.receive(answer(response, "a"))
    [response] = stream.due(Snapshot.of([resource(LISTENER, "a")]))

    assert names(response) == ["a"]


def test_unsubscribed_name_is_sent_again_when_it_is_asked_for_again() -> None:
    stream = Stream()
    stream.receive(ask(ENDPOINTS, "a"))
    [response] = stream.due(snapshot(a=1, b=1))
    stream.receive(answer(response, "b"))
    [response] = stream.due(snapshot(a=1, b=1))
    assert names(response) == ["b"]
    stream.receive(answer(response, "a"))

    [response] = stream.due(snapshot(a=1, b=1))
    assert names(response) == ["a"]


class Client(RuleBasedStateMachine):
    """A client that obeys the protocol, against a mesh that changes at will, on streams that break."""

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, int] = {}
        self.stream = Stream()
        self.waiting: list[Response] = []
        self.has: dict[str, dict[str, bytes]] = {kind: {} for kind in (CLUSTER, ENDPOINTS)}
        self.version = {CLUSTER: "", ENDPOINTS: ""}
        self.wants: tuple[str, ...] = ()
        self.open()

    def open(self) -> None:
        self.stream, self.waiting = Stream(), []
        self.stream.receive(ask(CLUSTER, version=self.version[CLUSTER]))
        self.stream.receive(ask(ENDPOINTS, *self.wants, version=self.version[ENDPOINTS]))
        self.collect()

    def collect(self) -> None:
        self.waiting += self.stream.due(snapshot(**self.state))

    @rule(name=st.sampled_from("abc"), content=st.integers(0, 2))
    def put(self, name: str, content: int) -> None:
        self.state = {**self.state, name: content}
        self.collect()

    @rule(name=st.sampled_from("abc"))
    def remove(self, name: str) -> None:
        self.state = {key: value for key, value in self.state.items() if key != name}
        self.collect()

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self) -> None:
        response = self.waiting.pop(0)
        held = self.has[response.type_url]
        brought = {r.name: r.body for r in response.resources}
        if response.type_url in WHOLE:
            assert brought != held or not self.version[response.type_url]
            self.has[response.type_url] = brought
        else:
            held.update(brought)
        self.version[response.type_url] = response.version
        if response.type_url == CLUSTER:
            self.wants = tuple(sorted(brought))
            self.has[ENDPOINTS] = {n: b for n, b in self.has[ENDPOINTS].items() if n in self.wants}
            self.stream.receive(answer(response))
        else:
            self.stream.receive(answer(response, *self.wants))
        self.collect()

    @rule()
    def break_the_stream(self) -> None:
        self.open()

    def quiesce(self) -> None:
        for _ in range(50):
            if not self.waiting:
                return
            self.take()
        raise AssertionError("it never stops sending")

    @invariant()
    def one_response_of_a_type_is_in_flight(self) -> None:
        kinds = [r.type_url for r in self.waiting]
        assert len(kinds) == len(set(kinds))

    def teardown(self) -> None:
        self.quiesce()
        self.open()  # subscribes to the endpoints of the clusters that are known by now
        self.quiesce()
        wanted = snapshot(**self.state)
        assert self.has[CLUSTER] == {n: r.body for n, r in wanted.all(CLUSTER).items()}
        assert self.has[ENDPOINTS] == {n: r.body for n, r in wanted.all(ENDPOINTS).items()}


TestClient = Client.TestCase
TestClient.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(
    st.lists(
        st.tuples(st.sampled_from(ORDER), st.lists(st.sampled_from("abcd"), max_size=3), st.text(max_size=3)),
        max_size=20,
    )
)
@settings(max_examples=100, deadline=None)
def test_no_sequence_of_requests_breaks_the_machine(requests: list[tuple[str, list[str], str]]) -> None:
    stream = Stream()
    everything = Snapshot.of(resource(kind, name) for kind in ORDER for name in "abc")
    for kind, wanted, nonce in requests:
        stream.receive(Request(kind, tuple(wanted), nonce=nonce, node_id="node"))
        stream.due(everything)
        assert stream.due(everything) == []  # what was due was sent, and is not owed again
