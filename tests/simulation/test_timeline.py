"""Virtual time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.simulation.timeline import Timeline


@given(st.lists(st.floats(0, 100)))
def test_everything_happens_in_order_and_at_its_time(times):
    timeline, seen = Timeline(), []
    for number, when in enumerate(times):
        timeline.at(when, lambda n: seen.append((timeline.now, n)), number)
    timeline.run(100)
    assert seen == sorted((when, number) for number, when in enumerate(times))
    assert timeline.is_over
    assert timeline.now == 100


def test_what_is_planned_meanwhile_happens_too_and_what_is_later_waits():
    timeline, seen = Timeline(), []

    def tick(left: int) -> None:
        seen.append(timeline.now)
        if left:
            timeline.at(timeline.now + 1, tick, left - 1)

    timeline.at(0.5, tick, 5)
    timeline.run(3)
    assert seen == [0.5, 1.5, 2.5]
    timeline.run(10)
    assert seen[-1] == 5.5
