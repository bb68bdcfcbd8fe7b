"""From entries to Views: told only what changed, a directory comes to the same as one that is shown everything."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from mesh.instance import Endpoint, Instance, State
from mesh.registry import record
from mesh.registry.directory import Directory
from mesh.registry.lineup import Lineup
from mesh.store import Entry

SERVICES = ("users.v1.UserService", "echo.v1.Echo")


def instance(number: int, service: str = SERVICES[0], state: State = State.READY) -> Instance:
    return Instance(service, f"i{number}", Endpoint("127.0.0.1", 5000 + number), state=state)


def entry(one: Instance, revision: int, value: bytes = b"") -> Entry:
    return Entry(record.instance_key("mesh", one), value or record.encode(one), 7, revision)


# What becomes of one key: a state, "poison" (a record that nobody can read) or "" (deleted).
fates = st.sampled_from([*State, "poison", ""])
changes = st.lists(st.tuples(st.sampled_from(SERVICES), st.integers(0, 6), fates), min_size=1, max_size=4)
stories = st.lists(st.tuples(changes, st.floats(0.0, 10.0)), max_size=25)


def take(entries: dict[str, Entry], step: list[tuple[str, int, str]], revision: int) -> set[str]:
    """Change the entries; return the keys."""
    keys = set()
    for service, number, fate in step:
        one = instance(number, service, State(fate) if fate in list(State) else State.READY)
        key = record.instance_key("mesh", one)
        keys.add(key)
        if fate:
            entries[key] = entry(one, revision, b"{" if fate == "poison" else b"")
        else:
            entries.pop(key, None)
    return keys


@given(stories)
def test_told_what_changed_it_comes_to_the_same_as_shown_everything(
    story: list[tuple[list[tuple[str, int, str]], float]],
) -> None:
    told, shown, now = Directory("mesh"), Directory("mesh"), 0.0
    entries: dict[str, Entry] = {}
    for directory in (told, shown):
        directory.update(entries, now)
    for revision, (step, pause) in enumerate(story, 1):
        now += pause
        assert told.tick(now, stale=False) == shown.tick(now, stale=False)
        keys = take(entries, step, revision)
        assert told.update({key: entries.get(key) for key in keys}, now, whole=False) == shown.update(entries, now)
        assert told.views == shown.views
        for view in told.views.values():
            assert [i.id for i in view.instances] == sorted(i.id for i in view.instances)


@given(stories)
def test_the_metric_counts_what_the_views_show(story: list[tuple[list[tuple[str, int, str]], float]]) -> None:
    directory = Directory("mesh")
    entries: dict[str, Entry] = {}
    for revision, (step, pause) in enumerate(story, 1):
        changed = take(entries, step, revision)
        directory.update({key: entries.get(key) for key in changed}, revision * pause, whole=False)
        for service, view in directory.views.items():
            counts = Counter(i.state for i in view.instances)
            for state in State:
                labels = {"service": service, "state": state.value}
                assert REGISTRY.get_sample_value("mesh_registry_instances", labels) == counts[state]


def test_what_did_not_change_is_not_made_again() -> None:
    directory = Directory("mesh")
    entries = {e.key: e for e in (entry(instance(n, s), 1) for n in range(3) for s in SERVICES)}
    directory.update(entries, 0.0)
    before = dict(directory.views)
    assert directory.tick(1.0, stale=False) == set()
    changed = entry(instance(1, state=State.DRAINING), 2)
    assert directory.update({changed.key: changed}, 1.0, whole=False) == {SERVICES[0]}
    assert directory.views[SERVICES[1]] is before[SERVICES[1]]
    assert directory.views[SERVICES[0]].instances[0] is before[SERVICES[0]].instances[0]


def test_a_lineup_is_in_order_however_it_was_put_together() -> None:
    lineup = Lineup()
    for number in (3, 1, 2, 5):
        lineup.put(instance(number))
    lineup.put(instance(2, state=State.DRAINING))
    lineup.drop("i3")
    lineup.drop("i4")
    assert [i.id for i in lineup.shown()] == ["i1", "i2", "i5"]
    assert lineup.counts == {State.READY: 2, State.DRAINING: 1}
