"""Endpoints made from the ones before are those made from nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.instance import Endpoint, Instance
from mesh.xds.assignment import Assignment
from mesh.xds.endpoints import endpoints

S = "users.v1.UserService"

# Few ids, hosts and ports, so that instances are replaced, move between zones and meet at one address.
instances = st.builds(
    Instance,
    service=st.just(S),
    id=st.integers(0, 30).map("i{:02}".format),
    endpoint=st.builds(Endpoint, st.sampled_from(["10.0.0.1", "10.0.0.2", "[::1]", "db.example"]), st.integers(1, 30)),
    zone=st.sampled_from(["", "a", "b"]),
    weight=st.integers(1, 300),
)
fleets = st.lists(instances, max_size=12, unique_by=lambda i: i.id)


def merged(before: tuple[Instance, ...], fleet: list[Instance], gone: set[str]) -> tuple[Instance, ...]:
    """What was there before stays the very same object, as in a view."""
    by_id = {i.id: i for i in before if i.id not in gone} | {i.id: i for i in fleet}
    return tuple(by_id[number] for number in sorted(by_id))


@given(st.lists(st.tuples(fleets, st.sets(st.integers(0, 30).map("i{:02}".format), max_size=6)), max_size=12))
def test_made_from_the_one_before_it_is_the_one_made_from_nothing(
    story: list[tuple[list[Instance], set[str]]],
) -> None:
    assignment, now = Assignment(S), tuple[Instance, ...]()
    for come, gone in story:
        now = merged(now, come, gone)
        assert assignment.update(now) == endpoints(S, now)
        assert assignment.nameless == {str(i.endpoint) for i in now if i.endpoint.host == "db.example"}


def test_nobody_is_an_assignment_too() -> None:
    assignment = Assignment(S)
    one = Instance(S, "i1", Endpoint("10.0.0.1", 1))
    assert assignment.update(()) == endpoints(S, ())
    assert assignment.update((one,)) == endpoints(S, (one,))
    assert assignment.update(()) == endpoints(S, ())
