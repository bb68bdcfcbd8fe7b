"""Who may be called: rules of the roster, without a network."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh.client.roster import Roster, Slot
from mesh.instance import Endpoint, Instance, State, View
from mesh.policy import BreakerMode, BreakerPolicy
from mesh.resilience.breaker import BreakerState
from mesh.resilience.outcome import Outcome

SERVICE = "t.Test"


def instance(number: int, state: State = State.READY, started: float = 0.0, port: int = 0) -> Instance:
    return Instance(SERVICE, f"i{number}", Endpoint("127.0.0.1", port or 5000 + number), state=state, started=started)


def roster_of(*instances: Instance, connected: bool = True) -> Roster:
    roster = Roster(SERVICE, BreakerPolicy(consecutive_failures=2, open_for=30.0))
    for slot in roster.update(View.of(SERVICE, instances)).opened:
        roster.connection_changed(slot, 0.0, connected=connected)
    return roster


def names(roster: Roster) -> set[str]:
    return {slot.instance.id for slot in roster.pickable}


def eject(slot: Slot) -> None:
    for _ in range(2):
        permit = slot.breaker.acquire(0.0)
        assert permit is not None
        permit.record(Outcome.FAILURE, 0.0)


def test_an_unknown_view_says_nothing() -> None:
    roster = roster_of(instance(1))
    changes = roster.update(View(SERVICE))
    assert not changes.opened
    assert not changes.closed
    assert names(roster) == {"i1"}


def test_only_connected_and_ready_instances_are_picked() -> None:
    roster = roster_of(instance(1), instance(2, State.DRAINING), instance(3, State.PAUSED))
    assert names(roster) == {"i1"}
    roster.connection_changed(roster.slots[0], 0.0, connected=False)
    assert roster.pick(0.0) is None


def test_a_paused_instance_keeps_its_connection_and_comes_back() -> None:
    roster = roster_of(instance(1), instance(2))
    assert not roster.update(View.of(SERVICE, [instance(1), instance(2, State.PAUSED)])).closed
    assert names(roster) == {"i1"}
    assert not roster.update(View.of(SERVICE, [instance(1), instance(2)])).opened
    assert names(roster) == {"i1", "i2"}


def test_an_instance_that_said_goodbye_is_closed_when_it_vanishes() -> None:
    roster = roster_of(instance(1), instance(2))
    roster.update(View.of(SERVICE, [instance(1), instance(2, State.DRAINING)]))
    closed = roster.update(View.of(SERVICE, [instance(1)])).closed
    assert [slot.instance.id for slot in closed] == ["i2"]


def test_an_instance_that_vanishes_without_goodbye_stays_while_its_connection_stands() -> None:
    roster = roster_of(instance(1), instance(2))
    assert not roster.update(View.of(SERVICE, [])).closed
    assert names(roster) == {"i1", "i2"}
    suspect = roster.slots[1]
    assert roster.connection_changed(suspect, 0.0, connected=False).closed == [suspect]
    assert names(roster) == {"i1"}


def test_a_suspect_that_registers_again_is_none_any_more() -> None:
    roster = roster_of(instance(1))
    roster.update(View.of(SERVICE, []))
    roster.update(View.of(SERVICE, [instance(1)]))
    assert not roster.connection_changed(roster.slots[0], 0.0, connected=False).closed


def test_an_instance_without_a_connection_is_forgotten_when_it_vanishes() -> None:
    roster = roster_of(instance(1), connected=False)
    assert len(roster.update(View.of(SERVICE, [])).closed) == 1
    assert roster.slots == ()


def test_of_two_instances_on_one_endpoint_the_later_speaks() -> None:
    old, new = instance(1, State.DRAINING, started=1.0, port=5000), instance(2, started=2.0, port=5000)
    roster = roster_of(new, old)
    assert names(roster) == {"i2"}
    assert len(roster.slots) == 1


def test_picks_are_shared_evenly() -> None:
    roster = roster_of(*(instance(n) for n in range(3)))
    picked = Counter(picked[0].name for _ in range(300) if (picked := roster.pick(0.0)))
    assert set(picked.values()) == {100}


def test_another_attempt_goes_elsewhere_while_there_is_an_elsewhere() -> None:
    roster = roster_of(*(instance(n) for n in range(3)))
    tried: list[Slot] = []
    for _ in range(3):
        picked = roster.pick(0.0, tried)
        assert picked is not None
        assert picked[0] not in tried
        tried.append(picked[0])
    assert roster.pick(0.0, tried) is not None


def test_an_ejected_endpoint_is_not_picked_until_its_time_is_over() -> None:
    roster = roster_of(*(instance(n) for n in range(3)))
    bad = roster.slots[1]
    eject(bad)
    assert all(picked[0] is not bad for _ in range(30) if (picked := roster.pick(1.0)))
    assert any(picked[0] is bad for _ in range(30) if (picked := roster.pick(100.0)))


def test_a_broken_breaker_is_probed_as_soon_as_a_new_connection_stands() -> None:
    roster = roster_of(*(instance(n) for n in range(3)))
    bad = roster.slots[1]
    eject(bad)
    roster.connection_changed(bad, 0.0, connected=False)
    roster.connection_changed(bad, 0.0, connected=True)
    assert any(picked[0] is bad for _ in range(30) if (picked := roster.pick(1.0)))


def test_a_connection_that_comes_back_again_and_again_is_probed_later_each_time() -> None:
    roster = roster_of(*(instance(n) for n in range(3)))
    bad = roster.slots[1]

    def picked(now: float) -> bool:
        return any(picked[0] is bad for _ in range(9) if (picked := roster.pick(now)))

    eject(bad)
    for times, now in ((1, 10.0), (2, 20.0), (3, 30.0)):
        roster.connection_changed(bad, now, connected=False)
        roster.connection_changed(bad, now, connected=True)
        assert picked(now + times - 1)
        assert times == 1 or bad.breaker.state is BreakerState.HALF_OPEN
        bad.breaker._record_probe(Outcome.FAILURE, now, 0.5, 0.0, None)
        roster.connection_changed(bad, now, connected=False)
        roster.connection_changed(bad, now, connected=True)
        assert not picked(now + times - 0.01)


def test_endpoints_that_are_connected_and_ready_are_compared() -> None:
    roster = roster_of(*(instance(n) for n in range(4)), instance(4, State.DRAINING))
    first = roster.slots[0]
    assert roster._peers._members == [slot.breaker for slot in roster.slots[:4]]
    roster.connection_changed(first, 0.0, connected=False)
    assert not roster._peers.may_eject(first.breaker)


def test_another_policy_reaches_breakers_that_stand_and_those_to_come() -> None:
    roster = roster_of(instance(1), instance(2))
    forced = BreakerPolicy(mode=BreakerMode.FORCED_OPEN)
    assert roster.apply(forced, 1.0)
    assert not roster.apply(forced, 1.0)
    assert roster.is_forced_open
    roster.update(View.of(SERVICE, [instance(n) for n in (1, 2, 3)]))
    roster.connection_changed(roster.slots[2], 1.0, connected=True)
    # No panic: it is meant so.
    assert roster.pick(1.0) is None
    assert roster.pick(1.0, roster.slots) is None
    assert roster.apply(BreakerPolicy(), 1.0)
    assert {picked[0].name for _ in range(9) if (picked := roster.pick(1.0))} == {s.name for s in roster.slots}


def test_with_more_than_half_ejected_everybody_is_picked() -> None:
    roster = roster_of(*(instance(n) for n in range(3)))
    for slot in roster.slots[:2]:
        eject(slot)
    picked = Counter(picked[0].name for _ in range(300) if (picked := roster.pick(1.0)))
    assert len(picked) == 3


def test_a_lone_endpoint_is_picked_even_when_ejected() -> None:
    roster = roster_of(instance(1))
    eject(roster.slots[0])
    assert roster.pick(1.0) is not None


def test_one_that_says_it_is_not_serving_is_picked_only_where_nobody_else_is_left() -> None:
    roster = roster_of(*(instance(n) for n in range(3)))
    for slot in roster.slots[:2]:
        roster.health_changed(slot, serving=False)
    assert names(roster) == {"i2"}
    roster.connection_changed(roster.slots[2], 0.0, connected=False)
    assert names(roster) == {"i0", "i1"}
    roster.health_changed(roster.slots[0], serving=True)
    assert names(roster) == {"i0"}


def test_what_an_instance_said_of_its_health_is_forgotten_with_its_connection() -> None:
    roster = roster_of(instance(1), instance(2))
    slot = roster.slots[0]
    roster.health_changed(slot, serving=False)
    roster.connection_changed(slot, 0.0, connected=False)
    roster.connection_changed(slot, 0.0, connected=True)
    assert names(roster) == {"i1", "i2"}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("view"), st.lists(st.tuples(st.integers(1, 6), st.sampled_from(State)), max_size=6)),
        st.tuples(st.just("connection"), st.tuples(st.integers(0, 5), st.booleans())),
        st.tuples(st.just("health"), st.tuples(st.integers(0, 5), st.booleans())),
        st.tuples(st.just("fail"), st.integers(0, 5)),
        st.tuples(st.just("pick"), st.integers(0, 60)),
    ),
    max_size=60,
)


@given(steps)
def test_every_pick_is_connected_and_ready_and_there_is_one_if_there_can_be(history: list[tuple[str, object]]) -> None:
    roster = Roster(SERVICE, BreakerPolicy(consecutive_failures=2))
    open_slots: set[Slot] = set()
    for kind, value in history:
        changes = None
        if kind == "view":
            changes = roster.update(View.of(SERVICE, [instance(n, s) for n, s in dict(value).items()]))  # type: ignore[call-overload]  # drawn so
        elif kind == "connection" and roster.slots:
            number, up = value  # type: ignore[misc]  # drawn so
            changes = roster.connection_changed(roster.slots[number % len(roster.slots)], 0.0, connected=up)
        elif kind == "health" and roster.slots:
            number, well = value  # type: ignore[misc]  # drawn so
            roster.health_changed(roster.slots[number % len(roster.slots)], serving=well)
        elif kind == "fail" and roster.pickable:
            permit = roster.pickable[value % len(roster.pickable)].breaker.acquire(0.0)  # type: ignore[operator]  # drawn so
            if permit is not None:
                permit.record(Outcome.FAILURE, 0.0)
        elif kind == "pick":
            picked = roster.pick(float(value))  # type: ignore[arg-type]  # drawn so
            assert (picked is not None) == bool(roster.pickable)
            assert picked is None or (picked[0].connected and picked[0].instance.state is State.READY)
            serving = any(s.serving for s in roster.slots if s.connected and s.instance.state is State.READY)
            assert picked is None or picked[0].serving == serving
        if changes is not None:
            open_slots = (open_slots | set(changes.opened)) - set(changes.closed)
        assert open_slots == set(roster.slots)
