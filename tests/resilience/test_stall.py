"""Endpoints that hang are told from those that are slow, idle, or called by impatient people."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.resilience.stall import Stalls

TICK = 0.05


@dataclass(eq=False)
class Endpoint:
    in_flight: int = 0
    streams: int = 0
    answered: int = 0
    given_up: int = 0


class World:
    """Looks every 50 ms; between looks, whoever is `well` answers."""

    def __init__(self, size: int) -> None:
        self.endpoints = [Endpoint() for _ in range(size)]
        self.stalls, self.now = Stalls(), 100.0
        self.run(1.0)

    def run(self, seconds: float, *silent: int, stop: bool = False) -> float:
        """Let time pass; the silent have a call under way and say nothing. Return when something changed."""
        begin = self.now
        while self.now < begin + seconds - 1e-9:
            self.now += TICK
            for number, endpoint in enumerate(self.endpoints):
                if number in silent:
                    endpoint.in_flight = 1
                else:
                    endpoint.in_flight = 0
                    endpoint.answered += 1
            if self.stalls.look(self.endpoints, self.now) and stop:
                return self.now - begin
        return seconds

    @property
    def hanging(self) -> list[int]:
        return [n for n, e in enumerate(self.endpoints) if e in self.stalls.hanging()]


def test_one_that_is_silent_while_others_answer_hangs_after_a_quarter_of_a_second() -> None:
    world = World(3)
    assert 0.2 <= world.run(2.0, 1, stop=True) <= 0.31
    assert world.hanging == [1]
    assert repr(world.stalls) == "Stalls(1 of 3 hang, waits up to 0.000 s are usual)"


def test_it_is_well_as_soon_as_anything_comes_back() -> None:
    world = World(3)
    world.run(1.0, 1)
    assert world.run(1.0, stop=True) == pytest.approx(TICK)
    assert world.hanging == []


def test_where_such_waits_are_usual_nobody_hangs() -> None:
    world = World(3)
    for _ in range(3):
        world.run(0.19, 0)
        world.run(0.19, 1)
        world.run(0.19, 2)
    world.run(0.35, 1)
    assert world.hanging == []
    world.run(0.15, 1)
    assert world.hanging == [1]


def test_a_pause_between_bursts_is_no_wait() -> None:
    world = World(3)
    for _ in range(5):  # who looks is the first that is answered, while the others are under way
        world.now += 3.0
        for endpoint in world.endpoints:
            endpoint.in_flight = 3
            endpoint.answered += 3
        assert not world.stalls.look(world.endpoints, world.now)
    assert 0.2 <= world.run(2.0, 1, stop=True) <= 0.31
    assert world.hanging == [1]


def test_a_wait_that_was_looked_at_twice_is_known_however_seldom_anybody_looks() -> None:
    world = World(3)
    world.run(2 * TICK, 1)
    world.endpoints[1].in_flight, world.endpoints[1].answered = 0, world.endpoints[1].answered + 1
    world.now += 3.0
    world.stalls.look(world.endpoints, world.now)
    assert "waits up to 0.10" in repr(world.stalls)


def test_usual_waits_are_forgotten_in_minutes() -> None:
    world = World(3)
    world.run(0.19, 0)
    world.run(0.1)
    world.run(180.0)
    assert world.run(1.0, 1, stop=True) <= 0.31


def test_nobody_hangs_where_nobody_answers() -> None:
    world = World(3)
    world.run(5.0, 0, 1, 2)
    assert world.hanging == []


def test_one_of_two_and_one_of_three_may_hang_and_never_more_than_half() -> None:
    for size, most in ((1, 0), (2, 1), (3, 1), (4, 2), (5, 2)):
        world = World(size)
        # One after the other, so that each time most of the others answer.
        for number in range(size - 1):
            world.run(3.0, *range(number + 1))
            assert len(world.hanging) <= most
        assert len(world.hanging) == min(most, size - 1)


def test_one_without_calls_does_not_hang() -> None:
    world = World(3)
    idle = world.endpoints[1]
    for _ in range(100):
        world.now += TICK
        for endpoint in world.endpoints:
            endpoint.answered += endpoint is not idle
        assert not world.stalls.look(world.endpoints, world.now)


def test_streams_may_be_silent() -> None:
    world = World(3)
    for endpoint in world.endpoints:
        endpoint.streams = 1
    world.run(2.0, 1)
    assert world.hanging == []
    world.endpoints[1].streams = 0
    world.run(1.0, 1)
    assert world.hanging == [1]


def test_callers_that_hang_up_soon_prove_nothing() -> None:
    world = World(3)
    for number in range(40):
        world.now += TICK
        for n, endpoint in enumerate(world.endpoints):
            endpoint.in_flight = number % 2 if n == 1 else 0
            endpoint.answered += n != 1
        assert not world.stalls.look(world.endpoints, world.now)


def test_five_attempts_in_a_row_that_were_given_up_do() -> None:
    world = World(3)
    for count in range(1, 7):
        world.now += TICK
        for n, endpoint in enumerate(world.endpoints):
            endpoint.answered += n != 1
        world.endpoints[1].given_up = count
        world.stalls.look(world.endpoints, world.now)
        assert world.hanging == ([1] if count >= 5 else [])


def test_an_answer_between_them_makes_them_no_row() -> None:
    world = World(3)
    for count in range(1, 30):
        world.now += TICK
        for n, endpoint in enumerate(world.endpoints):
            endpoint.answered += n != 1 or count % 4 == 0
        world.endpoints[1].given_up = count
        world.stalls.look(world.endpoints, world.now)
        assert world.hanging == []


def test_one_to_which_nobody_waits_any_more_is_tried_again_after_a_second_then_two_then_four() -> None:
    world = World(3)
    hung = world.endpoints[1]
    pauses = []
    for _ in range(7):
        world.run(1.0, 1)
        assert world.hanging == [1]
        begin = world.now
        hung.in_flight = 0
        while world.hanging:
            world.now += TICK
            for endpoint in world.endpoints:
                endpoint.answered += endpoint is not hung
            world.stalls.look(world.endpoints, world.now)
        pauses.append(round(world.now - begin - TICK))
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    world.run(1.0)
    world.run(1.0, 1)
    assert world.hanging == [1]


def test_while_something_waits_there_it_is_not_tried_again() -> None:
    world = World(3)
    world.run(1.0, 1)
    world.endpoints[1].in_flight = 0
    for number in range(200):
        world.now += TICK
        for n, endpoint in enumerate(world.endpoints):
            endpoint.answered += n != 1
            endpoint.in_flight = n == 1 and number % 15 == 0
        world.stalls.look(world.endpoints, world.now)
        assert world.hanging == [1]


def test_one_that_is_gone_is_forgotten_and_another_connection_begins_anew() -> None:
    world = World(3)
    world.run(1.0, 1)
    gone = world.endpoints.pop(1)
    assert world.stalls.look(world.endpoints, world.now)
    world.endpoints.append(gone)
    assert not world.stalls.look(world.endpoints, world.now + TICK)
    assert world.hanging == []


@given(st.lists(st.tuples(st.sets(st.integers(0, 4)), st.floats(0.01, 2)), max_size=60), st.integers(1, 5))
def test_whatever_happens_never_more_than_half_hang_and_answers_free(
    history: list[tuple[set[int], float]], size: int
) -> None:
    endpoints = [Endpoint() for _ in range(size)]
    stalls, now = Stalls(), 0.0
    for silent, passed in history:
        now += passed
        for number, endpoint in enumerate(endpoints):
            endpoint.in_flight = int(number in silent)
            endpoint.answered += number not in silent
        stalls.look(endpoints, now)
        hanging = stalls.hanging()
        assert 2 * len(hanging) <= size
        assert not any(endpoint in hanging for n, endpoint in enumerate(endpoints) if n not in silent)
