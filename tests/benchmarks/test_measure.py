"""How the bench compares, on arms whose cost is known."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from bench import cores, guard, openloop
from bench.measure import Arm, Finding, Samples, alone, compare, cpu_ns, interval, rounds
from bench.row import Spec, record


def samples(ours: float, baseline: float, *, again: float = 1.0) -> Samples:
    return Samples([baseline] * 20, [baseline * again] * 20, {"ours": [ours] * 20})


def test_the_ratio_is_the_median_over_rounds_so_one_disturbed_round_moves_nothing() -> None:
    found = compare([11.0] * 19 + [500.0], [10.0] * 20, unit="µs")

    assert found.ratio == pytest.approx(1.1)
    assert (found.low, found.high) == (pytest.approx(1.1), pytest.approx(1.1))


def test_the_interval_holds_the_median_and_is_the_same_every_time() -> None:
    values = [1 + 0.01 * (n % 7) for n in range(24)]

    low, high = interval(values)

    assert low <= statistics.median(values) <= high
    assert (low, high) == interval(values)


def test_a_control_beyond_its_bounds_makes_a_row_void_and_met_unknown() -> None:
    spec = Spec("x.y", "ours", goal=2.0)

    good, bad = (samples(1.0, 1.0, again=again).compared("ours") for again in (1.02, 1.05))

    assert spec.is_met(good) is True
    assert bad.is_void
    assert spec.is_met(bad) is None
    assert record(spec, bad, session="s")["void"] is True


def test_a_goal_is_for_the_ratio_or_without_a_baseline_for_the_amount_and_may_be_a_least() -> None:
    assert Spec("x.y", "ours", goal=1.05).is_met(Finding(9.0, 1.0, 1.04))
    assert not Spec("x.y", "ours", goal=1.05).is_met(Finding(9.0, 1.0, 1.06))
    assert Spec("x.y", "ours", goal=5, lower=False).is_met(Finding(9.0, 1.0, 9.0))
    assert not Spec("x.y", "ours", goal=5, lower=False).is_met(Finding(9.0, 1.0, 4.0))
    assert Spec("x.y", "ours", goal=1.0).is_met(alone([0.6, 0.5], unit="ms"))


def test_blocks_warm_up_and_alternate_with_the_baseline_first_and_last_and_each_arm_is_charged_its_own() -> None:
    made: list[tuple[str, int]] = []

    def arm(name: str, micros: float) -> Arm:
        def run(calls: int) -> None:
            made.append((name, calls))
            until = time.process_time_ns() + calls * micros * 1000
            while time.process_time_ns() < until:
                pass

        return Arm(run)

    found = asyncio.run(rounds(arm("base", 20), {"double": arm("double", 40)}, calls=50, count=4))

    assert made[:2] == [("base", 25), ("double", 25)]  # to warm up
    blocks = [("base", 10), ("base", 40), ("double", 10), ("double", 40), ("base", 10), ("base", 40)]
    assert made[2:] == blocks * 4
    assert statistics.median(found.baseline) == pytest.approx(20, rel=0.2)
    assert found.compared("double").ratio == pytest.approx(2, rel=0.2)


def test_an_arm_that_is_dearer_when_another_ran_before_it_has_a_control_of_one_and_its_own_cost() -> None:
    ran = ""

    def arm(name: str) -> Arm:
        def run(calls: int) -> None:
            nonlocal ran
            cold, ran = 3_000_000 * (ran != name), name
            until = time.process_time_ns() + calls * 20_000 + cold
            while time.process_time_ns() < until:
                pass

        return Arm(run)

    found = asyncio.run(rounds(arm("base"), {"same": arm("same")}, calls=100, count=4))

    assert found.control == pytest.approx(1, rel=0.1)
    assert found.compared("same").ratio == pytest.approx(1, rel=0.1)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be parted")
def test_what_is_measured_has_a_core_to_itself_and_the_rest_the_others() -> None:
    measured, rest, gone = (subprocess.Popen(["sleep", "60"]) for _ in range(3))
    try:
        gone.kill()
        gone.wait()
        cores.part({measured.pid, gone.pid}, [rest.pid, measured.pid])

        own, others = (os.sched_getaffinity(process.pid) for process in (measured, rest))
        assert len(own) == 1
        assert own | others == os.sched_getaffinity(0)
        assert not own & others
    finally:
        for process in (measured, rest):
            process.kill()
            process.wait()


def test_each_of_three_arms_is_called_after_each_other_as_often() -> None:
    called = ""

    def arm(name: str) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            nonlocal called
            called += name

        return call

    openloop.run(openloop.drive({name: arm(name) for name in "abc"}, rate=2000, seconds=0.0305, warm=0))

    after = Counter(pairwise(called))
    assert len(called) == 61
    assert set(after.values()) == {10}
    assert len(after) == 6


def test_the_cpu_of_another_process_is_told_while_it_lives() -> None:
    async def story() -> int:
        process = await asyncio.create_subprocess_exec("sh", "-c", "echo up; read line", stdin=-1, stdout=-1)
        assert process.stdout is not None
        await process.stdout.readline()
        spent = cpu_ns(process.pid)
        process.kill()
        await process.wait()
        with pytest.raises(OSError, match="Invalid argument"):
            cpu_ns(process.pid)
        return spent

    assert 0 < asyncio.run(story()) < 1e9


def test_latency_counts_from_when_a_call_was_due_not_from_when_it_began() -> None:
    async def story() -> openloop.Latencies:
        calls = 0

        async def call() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                time.sleep(0.2)  # the whole loop stands still: those due meanwhile have waited

        return (await openloop.drive({"only": call}, rate=100, seconds=0.3, warm=0))["only"]

    found = openloop.run(story())

    assert len(found.ms) == 30
    assert sum(ms > 50 for ms in found.ms) >= 12


def test_a_guard_tells_a_loss_beyond_the_noise_of_its_row_and_nothing_else() -> None:
    spec, most = Spec("x.y", "ours", noise=0.05), Spec("x.y", "ours", noise=0.4, lower=False)
    committed = {"x.y": {"row": "x.y", "ratio": 1.00}}

    assert guard.loss(spec, {"row": "x.y", "ratio": 1.04}, committed) == ""
    assert "1.060" in guard.loss(spec, {"row": "x.y", "ratio": 1.06}, committed)
    assert guard.loss(spec, {"row": "x.y", "ratio": 0.5}, committed) == ""
    assert guard.loss(spec, {"row": "x.y", "ratio": 2.0, "void": True}, committed) == ""
    assert guard.loss(spec, {"row": "x.y", "ratio": 2.0}, {}) == ""
    assert guard.loss(most, {"row": "x.y", "ratio": 0.7}, committed) == ""
    assert guard.loss(most, {"row": "x.y", "ratio": 0.5}, committed)
