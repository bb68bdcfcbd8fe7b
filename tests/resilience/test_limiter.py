"""The limiter by itself, by property, and around a simulated server under virtual time."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.resilience.limiter import PATIENCE, Limiter, LimitPolicy, Pace, Priority, Ticket


def full(limit: int) -> Limiter:
    """Return a limiter with as many calls in work as it takes."""
    limiter = Limiter(LimitPolicy(limit, limit), 0.0)
    for _ in range(limit):
        assert limiter.ask(Priority.DEFAULT) == (None, None)
    return limiter


def test_calls_below_three_quarters_of_the_limit_need_no_question() -> None:
    limiter = Limiter(LimitPolicy(8, 8), 0.0)
    for _ in range(6):
        assert limiter.in_work < limiter.free_below
        limiter.begin()
    assert limiter.in_work == limiter.free_below
    refused, _ = limiter.ask(Priority.SHEDDABLE)
    assert refused is not None
    assert refused.gone
    assert limiter.ask(Priority.DEFAULT) == (None, None)


def test_the_queue_is_a_quarter_of_the_limit_and_what_is_over_it_is_refused() -> None:
    limiter = full(8)
    waiting = [limiter.ask(Priority.DEFAULT)[0] for _ in range(3)]
    assert [ticket is not None and ticket.gone for ticket in waiting] == [False, False, True]


def test_critical_calls_are_let_in_first_and_push_the_youngest_other_out() -> None:
    limiter = full(8)
    first, second = limiter.ask(Priority.DEFAULT)[0], limiter.ask(Priority.DEFAULT)[0]
    critical, pushed = limiter.ask(Priority.CRITICAL)
    assert pushed is second
    assert pushed is not None
    assert pushed.gone
    assert [limiter.end(None, 0, 0), limiter.end(None, 0, 0), limiter.end(None, 0, 0)] == [critical, first, None]


def test_critical_calls_are_refused_when_only_their_like_is_waiting() -> None:
    limiter = full(4)
    assert limiter.ask(Priority.CRITICAL)[0] is not None
    refused, pushed = limiter.ask(Priority.CRITICAL)
    assert refused is not None
    assert (refused.gone, pushed) == (True, None)


def test_nobody_passes_by_those_who_wait() -> None:
    limiter = full(8)
    limiter.ask(Priority.DEFAULT)
    assert limiter.free_below == 0


def test_giving_up_twice_counts_once() -> None:
    limiter = full(8)
    ticket, _ = limiter.ask(Priority.DEFAULT)
    assert ticket is not None
    limiter.give_up(ticket)
    limiter.give_up(ticket)
    assert (limiter.waiting, limiter.free_below) == (0, 6)


def windows(limiter: Limiter, pace: Pace, seconds: float, count: int, in_work: int, begin: float) -> float:
    """Let so many windows pass with that many calls in work, each taking so long; return when it is then."""
    now = begin
    for _ in range(count):
        for _ in range(in_work):
            limiter.begin()
        now += 0.1
        for _ in range(in_work):
            limiter.end(pace, seconds, now)
    return now


def test_a_server_that_gets_slower_by_less_than_the_tolerance_keeps_its_limit() -> None:
    limiter, pace = Limiter(LimitPolicy(10, 500), 0.0), Pace()
    now = windows(limiter, pace, 0.010, 5, 300, 0.0)
    windows(limiter, pace, 0.019, 50, 300, now)
    assert limiter.limit == 500


def test_a_server_that_gets_much_slower_falls_from_what_was_in_use_at_once() -> None:
    limiter, pace = Limiter(LimitPolicy(10, 500), 0.0), Pace()
    now = windows(limiter, pace, 0.010, 5, 50, 0.0)
    windows(limiter, pace, 0.100, 2, 50, now)
    assert 40 < limiter.limit < 50


def test_the_limit_grows_again_within_seconds_of_a_normal_pace_used_or_not() -> None:
    limiter, pace = Limiter(LimitPolicy(10, 500), 0.0), Pace()
    now = windows(limiter, pace, 0.010, 5, 50, 0.0)
    now = windows(limiter, pace, 0.100, 30, 50, now)
    assert limiter.limit < 20
    windows(limiter, pace, 0.010, 100, 10, now)
    assert limiter.limit > 100


def test_more_calls_of_a_slow_method_are_not_slowness() -> None:
    limiter, quick, slow = Limiter(LimitPolicy(10, 500), 0.0), Pace(), Pace()
    now = windows(limiter, quick, 0.001, 5, 300, 0.0)
    windows(limiter, slow, 1.0, 50, 300, now)
    assert limiter.limit == 500


def test_nobody_is_let_in_without_a_question_while_all_are_to_ask() -> None:
    limiter = Limiter(LimitPolicy(8, 8), 0.0)
    limiter.ask_all(True)
    assert limiter.free_below == 0
    assert limiter.ask(Priority.DEFAULT) == (None, None)
    limiter.ask_all(False)
    assert limiter.free_below == 6


def test_where_all_are_to_ask_only_critical_calls_wait_and_the_others_are_refused_at_once() -> None:
    limiter = full(8)
    limiter.ask_all(True)
    refused, _ = limiter.ask(Priority.DEFAULT)
    assert refused is not None
    assert refused.gone
    critical, _ = limiter.ask(Priority.CRITICAL)
    assert critical is not None
    assert not critical.gone
    assert limiter.end(None, 0, 0) is critical


def test_a_limiter_tells_its_state() -> None:
    limiter = full(8)
    limiter.ask(Priority.DEFAULT)
    assert repr(limiter) == "Limiter(8 of 8 in work, 1 waiting)"


def test_a_lasting_change_of_pace_is_the_new_reference_after_two_minutes() -> None:
    limiter, pace = Limiter(LimitPolicy(10, 500), 0.0), Pace()
    now = windows(limiter, pace, 0.010, 5, 300, 0.0)
    now = windows(limiter, pace, 0.100, 1200, 9, now)
    limiter.limit = 20.0
    windows(limiter, pace, 0.100, 50, 20, now)
    assert limiter.limit > 20


def test_a_method_is_measured_by_its_fastest_call_and_not_by_those_that_ran_out_of_time() -> None:
    limiter, pace = Limiter(LimitPolicy(10, 500), 0.0), Pace()
    assert pace.needs(0.0, 0.0) == 0.0
    windows(limiter, pace, 1.0, 1, 20, 0.0)
    assert pace.needs(0.6, 0.1) == 0.5
    for seconds, late in ((0.2, False), (0.15, True), (0.3, False)):
        limiter.begin()
        limiter.end(pace, seconds, 0.1, late=late)
    assert pace.needs(0.6, 0.1) == 0.1


def test_one_call_a_second_is_let_try_that_would_else_be_begun_in_vain() -> None:
    limiter, pace = Limiter(LimitPolicy(10, 500), 0.0), Pace()
    windows(limiter, pace, 1.0, 1, 20, 0.0)
    assert [pace.needs(0.4, now) for now in (1.0, 1.5, 1.9, 2.0, 2.1)] == [0.0, 0.5, 0.5, 0.0, 0.5]


def test_what_was_the_fastest_call_is_forgotten_after_two_minutes() -> None:
    limiter, pace = Limiter(LimitPolicy(10, 500), 0.0), Pace()
    now = windows(limiter, pace, 0.002, 1, 20, 0.0)
    now = windows(limiter, pace, 0.2, 620, 20, now)
    assert pace.least() == 0.001
    now = windows(limiter, pace, 0.2, 620, 20, now)
    assert pace.least() == 0.1


def test_callers_that_give_a_call_no_time_do_not_make_the_others_look_slow() -> None:
    limiter, pace = Limiter(LimitPolicy(10, 500), 0.0), Pace()
    now = windows(limiter, pace, 0.2, 5, 300, 0.0)
    for _ in range(50):
        limiter.begin()
        now += 0.01
        limiter.end(pace, 0.005, now, late=True)
    windows(limiter, pace, 0.2, 50, 300, now)
    assert limiter.limit == 500


class Door(RuleBasedStateMachine):
    """Any order of coming, ending and giving up."""

    def __init__(self) -> None:
        super().__init__()
        self.limiter = Limiter(LimitPolicy(2, 12), 0.0)
        self.pace = Pace()
        self.now = 0.0
        self.inside = 0
        self.waiting: list[Ticket] = []

    @rule(priority=st.sampled_from(Priority))
    def comes(self, priority: Priority) -> None:
        room = self.limiter.in_work < int(self.limiter.limit)
        ticket, pushed = self.limiter.ask(priority)
        if ticket is None:
            assert room
            assert not self.waiting
            self.inside += 1
        elif not ticket.gone:
            assert priority is not Priority.SHEDDABLE
            self.waiting.append(ticket)
        if pushed is not None:
            assert pushed.priority < priority
            self.waiting.remove(pushed)

    @precondition(lambda self: self.inside)
    @rule(seconds=st.floats(0.0, 5.0), passed=st.floats(0.0, 20.0), says=st.booleans())
    def ends(self, seconds: float, passed: float, says: bool) -> None:
        self.now += passed
        before = max((t.priority for t in self.waiting), default=None)
        ticket = self.limiter.end(self.pace if says else None, seconds, self.now)
        self.inside -= 1
        if ticket is not None:
            assert ticket.priority is before
        while ticket is not None:
            self.waiting.remove(ticket)
            self.inside += 1
            ticket = self.limiter.next()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 100))
    def gives_up(self, which: int) -> None:
        self.limiter.give_up(self.waiting.pop(which % len(self.waiting)))

    @invariant()
    def the_account_is_right(self) -> None:
        assert (self.limiter.in_work, self.limiter.waiting) == (self.inside, len(self.waiting))
        assert 2 <= self.limiter.limit <= 12
        assert not any(ticket.gone for ticket in self.waiting)
        assert len(self.waiting) <= max(12 // 4, 1)

    @invariant()
    def nobody_waits_where_there_is_room(self) -> None:
        assert not self.waiting or self.inside >= int(self.limiter.limit)
        assert self.limiter.next() is None


TestDoor = Door.TestCase


@dataclass
class Simulated:
    """A server with so many workers, each taking `takes` seconds per call, behind a limiter or behind nothing."""

    workers: int
    takes: float
    limiter: Limiter | None
    deadline: float = float("inf")
    now: float = 0.0
    answered: list[tuple[float, float]] = field(default_factory=list)
    """When, and how long it took."""
    shed: int = 0
    _free: list[float] = field(default_factory=list)
    _ends: list[tuple[float, float, bool]] = field(default_factory=list)
    _queue: dict[int, tuple[Ticket, float]] = field(default_factory=dict)
    _pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        self._free = [0.0] * self.workers

    def run(self, rate: float, seconds: float) -> None:
        """Have calls come at a steady rate."""
        begin = self.now
        for number in range(int(rate * seconds)):
            self._until(begin + number / rate)
            self._come()
        self._until(begin + seconds)

    def _come(self) -> None:
        if self.limiter is None:
            self._work(self.now)
            return
        ticket, _ = self.limiter.ask(Priority.DEFAULT)
        if ticket is None:
            self._work(self.now)
        elif ticket.gone:
            self.shed += 1
        else:
            self._queue[id(ticket)] = (ticket, self.now)

    def _work(self, came: float) -> None:
        free = heapq.heappop(self._free)
        start = max(free, self.now)
        end = min(start + self.takes, came + self.deadline)
        heapq.heappush(self._free, max(end, start) if end > start else free)
        heapq.heappush(self._ends, (end, self.now if self.limiter else came, end < start + self.takes))

    def _until(self, when: float) -> None:
        while self._ends and self._ends[0][0] <= when:
            self.now, began, late = heapq.heappop(self._ends)
            if not late:
                self.answered.append((self.now, self.now - began))
            self._drop_late()
            if self.limiter is not None:
                ticket = self.limiter.end(self._pace, self.now - began, self.now, late=late)
                while ticket is not None:
                    self._work(self._queue.pop(id(ticket))[1])
                    ticket = self.limiter.next()
        self.now = when
        self._drop_late()

    def _drop_late(self) -> None:
        for key, (ticket, came) in list(self._queue.items()):
            if self.now - came >= PATIENCE and self.limiter is not None:
                self.limiter.give_up(ticket)
                del self._queue[key]
                self.shed += 1

    def good(self, since: float, within: float) -> int:
        """Count the answers since then that took no longer than that."""
        return sum(at >= since and took <= within for at, took in self.answered)


KNEE = 400.0
"""Calls a second of 8 workers that take 20 ms."""


def test_three_times_the_knee_for_five_minutes_costs_little_and_nobody_waits_long() -> None:
    server = Simulated(8, 0.020, Limiter(LimitPolicy(4, 1000), 0.0))
    server.run(KNEE * 0.5, 10)
    server.run(KNEE * 3, 300)
    assert server.good(10, within=0.100) >= 0.9 * KNEE * 300
    server.shed = 0
    server.run(KNEE * 0.5, 2)
    server.run(KNEE * 0.5, 10)
    assert server.good(312, within=0.040) >= 0.99 * KNEE * 0.5 * 10


def test_without_it_the_same_load_leaves_nobody_answered_in_time() -> None:
    server = Simulated(8, 0.020, None)
    server.run(KNEE * 3, 60)
    assert server.good(10, within=1.0) == 0


def test_a_service_that_is_slow_is_kept_alive_though_the_lowest_limit_is_too_high_for_it() -> None:
    """Four connections of 0.1 s: the hundred calls that are let in by default would take 2.5 s."""
    server = Simulated(4, 0.100, Limiter(LimitPolicy(), 0.0), deadline=1.0)
    server.run(20, 10)
    before = len(server.answered)
    server.run(120, 60)
    assert server.good(10, within=1.0) >= 0.8 * 40 * 60
    assert server.good(30, within=0.5) >= 0.8 * 40 * 40
    assert len(server.answered) > before
    server.run(20, 10)
    server.shed = 0
    server.run(20, 10)
    assert server.shed == 0


def test_the_lowest_limit_holds_again_when_it_was_grown_back_to() -> None:
    limiter, pace = Limiter(LimitPolicy(50, 500), 0.0), Pace()
    now = windows(limiter, pace, 0.010, 5, 60, 0.0)
    for _ in range(100):
        for _ in range(20):
            limiter.begin()
        now += 0.1
        for _ in range(20):
            limiter.end(pace, 1.0, now, late=True)
    assert limiter.limit < 10
    now = windows(limiter, pace, 0.010, 100, 20, now)
    assert limiter.limit > 50
    windows(limiter, pace, 0.500, 50, 60, now)
    assert limiter.limit == 50


def test_an_overload_from_the_first_moment_is_found_too() -> None:
    server = Simulated(8, 0.020, Limiter(LimitPolicy(4, 1000), 0.0))
    server.run(KNEE * 3, 30)
    assert server.good(0, within=0.200) >= 0.8 * KNEE * 30


def test_a_limit_that_has_grown_is_used_though_somebody_waits_at_every_moment() -> None:
    """Fifteen more come while one waits: each call that ends has to let in all that there is room for."""
    limiter = Limiter(LimitPolicy(4, 2000), 0.0)
    limiter.limit = 400.0
    server = Simulated(1000, 0.2, limiter)
    server.run(3000, 20)
    server.shed = 0
    server.run(3000, 2)
    assert limiter.limit > 600
    assert server.shed == 0


@given(st.sampled_from([0.1, 0.5, 0.8, 0.95]), st.integers(4, 64), st.sampled_from([0.001, 0.020, 0.200]))
def test_a_healthy_server_sheds_nothing(share: float, workers: int, takes: float) -> None:
    server = Simulated(workers, takes, Limiter(LimitPolicy(), 0.0))
    server.run(min(share * workers / takes, 2000), 3)
    assert server.shed == 0


def test_priorities_decide_who_is_shed() -> None:
    limiter, inside, shed = full(8), 8, Counter[Priority]()
    for number in range(300):
        priority = list(Priority)[number % 3]
        ticket, pushed = limiter.ask(priority)
        shed[priority] += ticket is not None and ticket.gone
        shed[Priority.DEFAULT] += pushed is not None
        if number % 3 == 2:
            inside += limiter.end(None, 0, 0) is not None
    assert (shed[Priority.SHEDDABLE], shed[Priority.CRITICAL]) == (100, pytest.approx(0, abs=2))
    assert shed[Priority.DEFAULT] >= 97
