"""Which instances are still believed in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.instance import Endpoint, Instance, State, View
from mesh.xds.retention import Retention

S = "a.B"


def one(number: int, state: State = State.READY) -> Instance:
    return Instance(S, f"i{number}", Endpoint("10.0.0.1", 1000 + number), state=state)


def view(*instances: Instance) -> View:
    return View.of(S, instances)


def ids(instances: tuple[Instance, ...]) -> list[str]:
    return [i.id for i in instances]


def test_one_of_three_that_vanishes_is_gone() -> None:
    kept = Retention()
    kept.observe(view(one(1), one(2), one(3)))

    assert ids(kept.observe(view(one(1), one(2)))) == ["i1", "i2"]


def test_all_that_vanish_at_once_are_kept() -> None:
    kept = Retention()
    kept.observe(view(one(1), one(2), one(3)))

    assert ids(kept.observe(view())) == ["i1", "i2", "i3"]
    assert ids(kept.observe(view())) == ["i1", "i2", "i3"]


def test_all_that_said_goodbye_are_gone() -> None:
    kept = Retention()
    kept.observe(view(one(1), one(2)))
    kept.observe(view(one(1, State.DRAINING), one(2, State.PAUSED)))

    assert kept.observe(view()) == ()


def test_draining_instance_gets_no_more_calls() -> None:
    kept = Retention()
    kept.observe(view(one(1), one(2)))

    assert ids(kept.observe(view(one(1, State.DRAINING), one(2)))) == ["i2"]


def test_last_one_that_drains_leaves_none() -> None:
    kept = Retention()
    kept.observe(view(one(1)))

    assert kept.observe(view(one(1, State.DRAINING))) == ()


def test_kept_ones_are_let_go_when_as_many_others_have_come() -> None:
    kept = Retention()
    kept.observe(view(one(1), one(2)))
    kept.observe(view())

    assert ids(kept.observe(view(one(3)))) == ["i1", "i2", "i3"]
    assert ids(kept.observe(view(one(3), one(4)))) == ["i3", "i4"]


def test_kept_one_whose_address_has_a_new_owner_is_let_go() -> None:
    kept = Retention()
    kept.observe(view(one(1), one(2), one(3)))
    kept.observe(view())
    successor = Instance(S, "new", one(1).endpoint)

    assert ids(kept.observe(view(successor))) == ["i2", "i3", "new"]


def test_unknown_view_changes_nothing() -> None:
    kept = Retention()
    kept.observe(view(one(1)))

    assert ids(kept.observe(View(S))) == ["i1"]


views = st.lists(
    st.dictionaries(st.integers(0, 4), st.sampled_from([State.READY, State.READY, State.DRAINING]), max_size=5),
    max_size=12,
)


@given(views)
def test_ready_ones_always_get_calls_and_a_full_list_never_empties_without_goodbyes(
    steps: list[dict[int, State]],
) -> None:
    kept, before = Retention(), ()
    for step in steps:
        seen = view(*(one(number, state) for number, state in step.items()))
        after = kept.observe(seen)
        assert {i.id for i in seen.ready} <= set(ids(after))
        if before and not after:
            parting = {i.id for i in seen.instances if i.state is State.DRAINING}
            assert {i.id for i in before} <= parting
        before = after


def test_what_did_not_change_is_the_same_tuple() -> None:
    kept = Retention()
    seen = view(one(1), one(2))
    assert kept.observe(seen) is kept.observe(seen)


def test_an_unknown_view_changes_nothing() -> None:
    kept = Retention()
    kept.observe(view(one(1), one(2)))
    assert ids(kept.observe(View(S))) == ["i1", "i2"]
