"""Who counts as present when keys vanish."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from mesh.instance import Endpoint, Instance, State
from mesh.registry.roster import SUSPECT_FOR, Roster

SERVICE = "users.v1.UserService"


def instances(*numbers: int, state: State = State.READY) -> dict[str, Instance]:
    return {f"i{n}": Instance(SERVICE, f"i{n}", Endpoint("127.0.0.1", 5000 + n), state=state) for n in numbers}


def ids(roster: Roster) -> list[str]:
    return [i.id for i in roster.view().instances]


def test_a_roster_knows_nothing_before_its_first_update() -> None:
    assert not Roster(SERVICE).view().known


def test_an_empty_first_update_is_known_and_empty() -> None:
    view = Roster(SERVICE).update({}, 0.0)
    assert view.known
    assert not view.instances
    assert not view.stale


def test_one_of_three_vanishing_goes_at_once() -> None:
    roster = Roster(SERVICE)
    roster.update(instances(1, 2, 3), 0.0)
    view = roster.update(instances(1, 2), 1.0)
    assert ids(roster) == ["i1", "i2"]
    assert not view.stale


def test_all_vanishing_at_once_stay_as_suspects_and_the_view_is_stale() -> None:
    roster = Roster(SERVICE)
    roster.update(instances(1, 2, 3), 0.0)
    view = roster.update({}, 1.0)
    assert ids(roster) == ["i1", "i2", "i3"]
    assert view.stale


def test_all_vanishing_one_by_one_are_caught_too() -> None:
    roster = Roster(SERVICE)
    roster.update(instances(1, 2, 3, 4), 0.0)
    roster.update(instances(2, 3, 4), 1.0)
    roster.update(instances(3, 4), 2.0)
    roster.update(instances(4), 3.0)
    roster.update({}, 4.0)
    assert ids(roster) == ["i3", "i4"]


def test_suspects_that_return_are_present_again() -> None:
    roster = Roster(SERVICE)
    roster.update(instances(1, 2, 3), 0.0)
    roster.update({}, 1.0)
    view = roster.update(instances(1, 2, 3), 2.0)
    assert ids(roster) == ["i1", "i2", "i3"]
    assert not view.stale


def test_suspects_that_do_not_return_are_dropped_in_time() -> None:
    roster = Roster(SERVICE)
    roster.update(instances(1, 2, 3), 0.0)
    roster.update({}, 1.0)
    roster.update(instances(2), 2.0)
    assert ids(roster) == ["i1", "i2", "i3"]
    roster.tick(1.0 + SUSPECT_FOR)
    assert ids(roster) == ["i2"]
    assert not roster.view().stale


def test_those_who_said_goodbye_go_at_once_even_all_of_them() -> None:
    roster = Roster(SERVICE)
    roster.update(instances(1, 2, 3), 0.0)
    roster.update(instances(1, 2, 3, state=State.DRAINING), 0.5)
    view = roster.update({}, 1.0)
    assert not view.instances
    assert not view.stale


def test_a_rolling_restart_leaves_no_suspects() -> None:
    roster = Roster(SERVICE)
    now = 0.0
    present = instances(1, 2, 3)
    roster.update(present, now)
    for n in (1, 2, 3):
        roster.update({**present, **instances(n, state=State.DRAINING)}, now + 0.1)
        present = {k: v for k, v in present.items() if k != f"i{n}"}
        roster.update(present, now + 0.2)
        present |= instances(n + 10)
        view = roster.update(present, now + 0.3)
        assert not view.stale
        now += 0.5
    assert ids(roster) == ["i11", "i12", "i13"]


updates = st.lists(st.tuples(st.sets(st.integers(0, 5)), st.floats(0.0, 30.0)), max_size=20)


@given(updates)
def test_whoever_is_seen_is_always_in_the_view(story: list[tuple[set[int], float]]) -> None:
    roster, now = Roster(SERVICE), 0.0
    for seen, wait in story:
        now += wait
        shown: Mapping[str, Instance] = instances(*seen)
        view = roster.update(shown, now)
        assert set(shown.values()) <= set(view.instances)


@given(updates)
def test_in_the_end_the_view_is_what_the_store_shows(story: list[tuple[set[int], float]]) -> None:
    roster, now, seen = Roster(SERVICE), 0.0, set[int]()
    for seen, wait in story:
        now += wait
        roster.update(instances(*seen), now)
    roster.update(instances(*seen), now)
    view = roster.tick(now + SUSPECT_FOR)
    assert {i.id for i in view.instances} == {f"i{n}" for n in seen}
    assert not view.stale
