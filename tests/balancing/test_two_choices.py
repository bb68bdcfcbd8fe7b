"""The better of two: slow, hung, failing and full endpoints are left, and come back."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mesh.balancing.load import Ending
from mesh.balancing.picker import Candidate
from mesh.balancing.slow_start import SlowStart
from mesh.balancing.two_choices import TwoChoices
from support.candidates import answer, candidates, even

Answers = Callable[[int, float], tuple[float, Ending]]
"""Says of an endpoint, at a time: how long it takes, and how it ends."""


def drive(known: list[Candidate[int]], answers: Answers, *, rate: float, seconds: float, seed: int = 1) -> Counter[int]:
    """Call at a steady rate, each call ending when its endpoint says; count calls by endpoint."""
    picker: TwoChoices[int] = TwoChoices()
    picker.replace(known, 0.0)
    dice, counts, ends = random.Random(seed), Counter(), []
    for number in range(int(rate * seconds)):
        now = number / rate
        while ends and ends[0][0] <= now:
            at, _, candidate, took, ending = heapq.heappop(ends)
            candidate.load.ended(at, took, ending)
        chosen = picker.pick(now, dice.random())
        assert chosen is not None
        counts[chosen.item] += 1
        chosen.load.began(now)
        took, ending = answers(chosen.item, now)
        heapq.heappush(ends, (now + took, number, chosen, took, ending))
    return counts


@given(st.integers(2, 50), st.floats(0, 1, exclude_max=True))
def test_two_different_ones_are_compared(size: int, draw: float) -> None:
    picker: TwoChoices[int] = TwoChoices()
    known = even(size)
    for candidate in known[1:]:
        answer(candidate, 0.0, 1.0)
    picker.replace(known, 0.0)
    # The first costs nothing: it is chosen whenever it is in the pair, and a pair never is twice the same.
    chosen = picker.pick(1.0, draw)
    assert chosen is not None
    if size == 2:
        assert chosen is known[0]


@given(st.integers(2, 60), st.floats(0, 1, exclude_max=True), st.data())
def test_a_pass_looks_at_all_as_often_and_at_none_beside_itself(size: int, draw: float, data: st.DataObject) -> None:
    picker: TwoChoices[int] = TwoChoices()
    known = even(size)
    cheap, costly = known[data.draw(st.integers(0, size - 2))], known[-1]
    for candidate in known:
        answer(candidate, 0.0, 9.0 if candidate is costly else 0.001 if candidate is cheap else 1.0)
    picker.replace(known, 0.0)
    # Of few the pairs that there are, as often as makes 240 or more; of many as many as there are endpoints.
    pairs = size * (size - 1)
    dealt = pairs * -(-240 // pairs) if size <= 16 else size
    for _ in range(2):  # one pass after the other
        chosen = [picker.pick(9.0, draw) for _ in range(dealt)]
        assert chosen.count(cheap) == 2 * dealt / size
        assert costly not in chosen


@given(st.integers(2, 40))
def test_every_pair_begins_some_pass(size: int) -> None:
    picker: TwoChoices[int] = TwoChoices()
    known, firsts = even(size), Counter[int]()
    for number in range(1000):
        picker.replace(known, 0.0)
        chosen = picker.pick(1.0, number / 1000)
        assert chosen is not None
        firsts[chosen.item] += 1
    mean = 1000 / size
    assert 0.8 * mean - 1 < min(firsts.values()), "with nothing to choose between them the first of a pair is chosen"
    assert max(firsts.values()) < 1.2 * mean + 1


def test_a_slow_one_of_three_is_starved() -> None:
    counts = drive(even(3), lambda n, _: (0.3 if n == 0 else 0.003, Ending.ANSWERED), rate=200, seconds=30)
    assert counts[0] < 0.01 * counts.total()
    assert counts[1] / counts[2] == 1 or 0.7 < counts[1] / counts[2] < 1.4


def test_a_hung_one_takes_a_handful_of_calls_before_the_first_would_time_out() -> None:
    counts = drive(even(3), lambda n, _: (30.0 if n == 0 else 0.003, Ending.ANSWERED), rate=200, seconds=5)
    assert counts[0] <= 5


def test_one_that_fails_at_once_gets_less_than_its_share() -> None:
    fail = (0.0001, Ending.FAILED)
    counts = drive(even(3), lambda n, _: fail if n == 0 else (0.005, Ending.ANSWERED), rate=200, seconds=30)
    assert counts[0] < 0.03 * counts.total()


def test_one_that_was_slow_comes_back() -> None:
    def answers(number: int, now: float) -> tuple[float, Ending]:
        return (0.2 if number == 0 and now < 10 else 0.004), Ending.ANSWERED

    known = even(3)
    drive(known, answers, rate=200, seconds=10)
    picker: TwoChoices[int] = TwoChoices()
    picker.replace(known, 10.0)
    dice = random.Random(3)
    chosen = {picker.pick(10.0 + 0.01 * n, dice.random()).item for n in range(6000)}
    assert 0 in chosen, "a minute without a call is forgiven"


def test_a_newcomer_is_tried_with_one_call_first() -> None:
    known = even(3)
    for candidate in known[:2]:
        answer(candidate, 0.0, 0.002)
    picker: TwoChoices[int] = TwoChoices()
    picker.replace(known, 0.0)
    chosen = []
    for draw in (n / 60 for n in range(60)):
        candidate = picker.pick(0.01, draw)
        candidate.load.began(0.01)
        chosen.append(candidate.item)
    assert chosen.count(2) == 1 + sum(1 for n in chosen[chosen.index(2) + 1 :] if n == 2)
    assert chosen.count(2) < 10, "not flooded before it has answered once"


def test_equal_ones_share_equally() -> None:
    counts = drive(even(5), lambda *_: (0.005, Ending.ANSWERED), rate=500, seconds=20)
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_weights_bias_the_choice() -> None:
    counts = drive(candidates([1, 1, 4]), lambda *_: (0.05, Ending.ANSWERED), rate=200, seconds=20)
    assert counts[2] > 1.5 * counts[0]


def test_the_young_are_spared() -> None:
    known = [Candidate(n, f"c{n}", since=100.0 if n == 2 else 0.0) for n in range(3)]
    for candidate in known:
        answer(candidate, 99.0, 0.01)
    picker: TwoChoices[int] = TwoChoices(SlowStart(60.0))
    picker.replace(known, 100.0)
    dice = random.Random(5)
    young = Counter(picker.pick(101.0, dice.random()).item for _ in range(300))
    grown = Counter(picker.pick(200.0, dice.random()).item for _ in range(300))
    assert young[2] == 0
    assert grown[2] > 0
