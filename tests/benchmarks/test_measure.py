"""How the bench compares, on arms whose cost is known."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench import between, cores, guard, openloop, page, paper
from bench.__main__ import main
from bench.measure import Arm, Finding, Samples, alone, compare, cpu_ns, interval, rounds
from bench.row import PROMISED, Measurement, Spec, flat, nested, record
from bench.site import Site


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


def test_rounds_of_one_process_are_not_taken_for_processes() -> None:
    rounds_of = [[value] * 15 for value in (1.0, 1.02, 1.04, 1.06, 1.08, 1.1)]
    values = [value for process in rounds_of for value in process]

    low, high = interval(values)
    wider = interval(values, [15] * 6)

    assert 1.04 <= low <= high <= 1.06
    assert wider[0] < 1.03
    assert wider[1] > 1.07
    assert interval(values, [90]) == (low, high)


def test_samples_keep_which_rounds_were_of_one_process_wherever_they_go() -> None:
    whole = Samples()
    for ours in (1.0, 1.1, 1.2):
        whole.extend(Samples.of_json(json.loads(json.dumps(samples(ours, 1.0).to_json()))))
    again = Samples.of_json(whole.to_json())
    again.extend(samples(1.3, 1.0))

    assert samples(1.0, 1.0).parts == []
    assert whole.parts == whole.rates("calls/s").parts == [20, 20, 20]
    assert again.parts == [20, 20, 20, 20]
    found = whole.compared("ours")
    assert (found.low, found.high) == (1.0, 1.2)
    session = paper.Session("now", {}, {})
    session.add(Spec("x.y", "ours", "theirs"), found)
    assert session.to_json()["samples"]["x.y"]["parts"] == [20, 20, 20]
    assert session.rows[0]["processes"] == 3
    assert "| 60 in 3 |" in page.page(session.rows, [])


def test_calls_of_several_processes_are_told_apart() -> None:
    mesh, raw = (openloop.Latencies([ms] * 600, late_ms=[0.1]) for ms in (2.0, 1.0))

    assert openloop.compared(mesh, raw).parts == []
    assert openloop.compared(mesh, raw, processes=4).parts == [1, 2, 1, 2]


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


def test_each_arm_is_charged_its_own_cpu() -> None:
    def arm(micros: float) -> Arm:
        def run(calls: int) -> None:
            until = time.process_time_ns() + calls * micros * 1000
            while time.process_time_ns() < until:
                pass

        return Arm(run)

    found = asyncio.run(rounds(arm(20), {"double": arm(40)}, calls=50, count=4))

    assert statistics.median(found.baseline) == pytest.approx(20, rel=0.2)
    assert found.compared("double").ratio == pytest.approx(2, rel=0.2)


class Host:
    """Where arms run whose calls cost what is said, in a time of its own; and more, for some calls, behind others."""

    def __init__(self, lasting: int = 0, extra: Callable[[str, str], float] = lambda before, name: 0.0) -> None:
        self._lasting, self._extra = lasting, extra
        self.ns = 0.0
        self.runs: list[tuple[str, int]] = []
        self._before = self._now = ""
        self._done = 0

    def arm(self, name: str, micros: float) -> Arm:
        def run(calls: int) -> None:
            self.runs.append((name, calls))
            if name != self._now:
                self._before, self._now, self._done = self._now, name, 0
            dear = max(0, min(calls, self._lasting - self._done))
            self.ns += 1000 * (calls * micros + dear * self._extra(self._before, name))
            self._done += calls

        host = self

        class Timed(Arm):
            def spent_ns(self) -> int:
                return round(host.ns)

        return Timed(run)

    def compare(self, *, calls: int = 40, count: int = 12, **micros: float) -> Samples:
        baseline, *others = (self.arm(name, cost) for name, cost in micros.items())
        return asyncio.run(rounds(baseline, dict(zip(list(micros)[1:], others, strict=True)), calls=calls, count=count))


def test_a_turn_is_a_block_that_warms_up_and_two_that_count() -> None:
    host = Host()

    found = host.compare(base=20, double=40, count=2)

    turn = [[("base", 20)] * 3, [("double", 20)] * 3]
    assert host.runs == (turn[1] + turn[0]) * 3
    assert found.baseline == found.again == [20, 20]
    assert found.others == {"double": [40, 40]}


@pytest.mark.parametrize("names", ["ab", "abc", "abcdefg"])
def test_each_arm_comes_behind_each_other_one_as_often_and_never_behind_itself(names: str) -> None:
    host = Host()

    host.compare(**dict.fromkeys(names, 1.0), count=len(names) - 1)

    turns = [name for name, _ in host.runs[::3]][len(names) - 1 :]  # without those to warm up
    assert turns[0] == turns[-1] == "a"
    after = Counter(pairwise(turns))
    assert set(after.values()) == {1}
    assert len(after) == len(names) * (len(names) - 1)


@pytest.mark.parametrize("names", ["base same", "base same more", "base same b c d e f"])
def test_what_any_leaves_for_the_next_moves_no_ratio_and_the_control_shows_what_outlives_the_warming_up(
    names: str,
) -> None:
    costs = dict.fromkeys(names.split(), 20.0)

    short, long = (Host(lasting, lambda *_: 10.0).compare(**costs) for lasting in (20, 30))

    assert (short.control, short.compared("same").ratio) == (1, 1)
    assert long.control == pytest.approx(1.25)
    assert long.compared("same").ratio == pytest.approx(1)


def test_what_ours_leaves_for_the_baseline_is_not_the_baselines_to_pay_unseen() -> None:
    """As a timer does that the loop still waits for."""
    host = Host(40, lambda before, name: 2.0 * (before == "ours"))

    found = host.compare(base=20, ours=20).compared("ours")

    assert found.is_void
    assert found.control == pytest.approx(1.1)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Four that live, the first of which passes for this one, and one that is gone."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core cannot be parted")
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(5)]
    started[-1].kill()
    started[-1].wait()
    monkeypatch.setattr(cores.os, "getpid", lambda: started[0].pid)
    yield [process.pid for process in started]
    for process in started:
        process.kill()
        process.wait()


def test_what_is_measured_has_a_core_to_itself_and_the_rest_the_others(processes: list[int]) -> None:
    caller, measured, too, rest, gone = processes

    cores.place("apart", {measured, too, gone}, [rest, measured, too])

    own, same, others, who_calls = map(os.sched_getaffinity, (measured, too, rest, caller))
    assert len(own) == 1
    assert own == same
    assert own | others == os.sched_getaffinity(0)
    assert not own & others
    assert who_calls == others


def test_where_all_is_measured_who_calls_has_a_core_to_itself(processes: list[int]) -> None:
    caller, server, another, *_ = processes

    cores.place("apart", {caller, server, another}, [server, another])

    own, others = os.sched_getaffinity(caller), os.sched_getaffinity(server)
    assert len(own) == 1
    assert own | others == os.sched_getaffinity(0)
    assert not own & others
    assert os.sched_getaffinity(another) == others


def test_who_waits_for_the_other_shares_a_core_with_it(processes: list[int]) -> None:
    caller, server, elsewhere, *_ = processes

    cores.place("one", {caller}, [server])

    assert len(os.sched_getaffinity(caller)) == 1
    assert os.sched_getaffinity(server) == os.sched_getaffinity(caller)
    assert os.sched_getaffinity(elsewhere) == os.sched_getaffinity(0)


def test_the_scheduler_places_what_nobody_places(processes: list[int]) -> None:
    cores.place("any", {processes[0]}, [processes[1]])

    assert os.sched_getaffinity(processes[0]) == os.sched_getaffinity(processes[1]) == os.sched_getaffinity(0)


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


def test_a_goal_that_was_met_and_is_missed_by_all_of_the_interval_is_a_loss_within_the_noise_too() -> None:
    spec = Spec("x.y", "ours", goal=1.05, noise=0.11)
    met, missed = ({"x.y": found(ratio, 0.9, 1.2, goal=1.05)} for ratio in (1.03, 1.06))
    clear, near = found(1.08, 1.06, 1.10, goal=1.05), found(1.08, 1.04, 1.12, goal=1.05)

    assert guard.loss(spec, clear, met) == "x.y: 1.080, committed 1.030, 1.060 to 1.100: its goal of 1.05 was met"
    assert guard.loss(spec, near, met) == ""
    assert guard.loss(spec, clear, missed) == ""


def test_a_row_that_was_not_measured_is_not_passed_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, session = Spec("x.y", "ours"), paper.Session("now", {}, {})
    monkeypatch.setattr(paper, "read", lambda: [{"row": "x.y", "ratio": 1.00}])
    session.skip([spec], "no Go here")
    with Site(tell=lambda _: None) as site:
        assert guard.check(site, [Measurement((spec,), lambda _: {})], session, lambda *_: None) == 3
    assert "Not judged, because it was not measured: x.y." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("first", "second", "code", "told"),
    [
        ((1.04, 1.00), None, 0, "Nothing was lost."),
        ((1.20, 1.00), (1.04, 1.00), 0, "Nothing was lost."),
        ((1.20, 1.00), (1.20, 1.00), 1, "1 lost."),
        ((1.20, 1.00), (0.90, 1.05), 1, "1 lost."),  # a void row is no reprieve
        ((1.20, 1.05), None, 3, "Not judged"),
        ((1.00, 1.05), None, 3, "Not judged"),
    ],
)
def test_a_guard_judges_by_rows_that_are_not_void(
    first: tuple[float, float],
    second: tuple[float, float] | None,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = Spec("x.y", "ours", noise=0.05)
    session = paper.Session("now", {}, {})
    monkeypatch.setattr(paper, "read", lambda: [{"row": "x.y", "ratio": 1.00}])

    def measure(ratio: float, control: float) -> None:
        session.add(spec, samples(ratio * (1 + control) / 2, 1.0, again=control).compared("ours"))

    def again(*_: object) -> None:
        assert second is not None, "measured again for nothing"
        measure(*second)

    measure(*first)
    with Site(tell=lambda _: None) as site:
        assert guard.check(site, [Measurement((spec,), lambda _: {})], session, again) == code
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    "committed", [[], [{"row": "x.y", "ratio": 1.00, "void": True}], [{"row": "x.y", "ratio": None}]]
)
def test_a_guard_that_has_nothing_to_compare_with_says_so(
    committed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, session = Spec("x.y", "ours", noise=0.05), paper.Session("now", {}, {})
    monkeypatch.setattr(paper, "read", lambda: committed)
    session.add(spec, samples(1.0, 1.0).compared("ours"))
    with Site(tell=lambda _: None) as site:
        assert guard.check(site, [Measurement((spec,), lambda _: {})], session, lambda *_: None) == 3
    assert "Not judged, because docs/benchmarks.json has no valid figure of it: x.y." in capsys.readouterr().out


def test_a_quick_run_has_fewer_rounds_of_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[Any] = []

    def child(self: Site, order: Any, *, name: str) -> dict[str, Any]:
        orders.append(order)
        return samples(1.0, 1.0).to_json()

    monkeypatch.setattr(Site, "child", child)
    with Site(tell=lambda _: None) as full, Site(quick=True, tell=lambda _: None) as quick:
        for site in (full, quick):
            site.compare("module:arms", {}, calls=300, rounds=90)

    assert [(order["calls"], order["rounds"]) for order in orders] == [(300, 15)] * 6 + [(300, 10)] * 3


def found(ratio: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return record(Spec("x.y", "ours", "theirs", **more), Finding(ratio, 1.0, ratio, low, high), session="s")


def test_a_row_is_written_with_the_promised_keys_first_and_all_else_under_one() -> None:
    row = found(1.0, 0.9, 1.1, goal=1.05)

    written = nested(row)

    assert list(written) == [*PROMISED, "detail"]
    assert flat(written) == row


def test_a_goal_inside_of_the_interval_is_met_or_not_within_the_noise() -> None:
    told = {
        "yes": found(1.00, 0.98, 1.04, goal=1.05),
        "yes, within the noise": found(1.00, 0.98, 1.08, goal=1.05),
        "**no**": found(1.20, 1.10, 1.30, goal=1.05),
        "**no**, within the noise": found(1.08, 1.02, 1.10, goal=1.05),
        "yes, moonshot": found(5.1, 4.0, 6.0, goal=3.0, moonshot=5.0, lower=False),
    }

    assert {page.verdict(row): row for row in told.values()} == told
    assert page.verdict(found(3.1, 2.9, 3.3, goal=3.0, lower=False)) == "yes, within the noise"
    assert page.verdict(found(2.9, 2.8, 3.1, goal=3.0, lower=False)) == "**no**, within the noise"


def test_what_the_page_counts_adds_up_and_void_rows_stand_under_not_met_without_their_notes() -> None:
    void = found(1.0, 0.9, 1.1, goal=1.05) | {"void": True, "met": None, "control": 1.08, "notes": "of it -0"}
    rows = [
        found(1.0, 0.9, 1.1, goal=1.05),
        found(1.2, 1.1, 1.3, goal=1.05),
        void | {"row": "x.void"},
        record(Spec("x.gone", "ours", goal=1.0), None, session="s", skipped="no Go here"),
        found(1.0, 0.9, 1.1),
    ]

    text = page.page(rows, [])

    told = "5 rows, 4 of them with a goal: 1 met (1 of them within the noise), 1 not, 1 void, 1 skipped."
    assert told in text
    assert "one session" in text
    missed = text.partition("## Not met")[2]
    assert "`x.y`: 1.200, asked" in missed
    assert "`x.void`: 1.000, asked for was ≤ 1.05. Void: the same against itself came to 1.08" in missed
    assert "`x.gone`: not measured, no Go here" in missed
    assert "-0" not in text


def test_the_page_tells_how_far_values_lie_apart_and_how_long_a_session_took() -> None:
    spec, session = Spec("x.y", "ours", "theirs"), paper.Session("now", {"cores": 2, "memory_gb": 4, "system": "x"}, {})
    session.add(spec, compare([10.0, 11.0, 12.0, 13.0, 14.0], [10.0] * 5, unit="µs CPU"))
    session.add(spec, alone([0.6, 0.5], unit="ms"))
    session.begun -= 1800

    text = page.page(session.rows, [session.to_json()])

    assert "| 12.0 µs CPU (IQR 3.00) | theirs: 10.0 µs CPU (IQR 0) |" in text
    assert "| 0.550 ms |" in text
    assert "; took 30 min; 0 % busy before;" in text
    earlier = {key: value for key, value in session.to_json().items() if key != "took_s"}
    assert "took" not in page.page([], [earlier]).partition("## Sessions")[2]


@pytest.mark.parametrize("value", [0.0, -0.0, -0.00001])
def test_nothing_has_no_sign(value: float) -> None:
    assert page.amount(value) == "0"


def test_two_runs_are_compared_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, **rows: tuple[float, float, float]) -> str:
        session = paper.Session(name, {"cores": 2, "memory_gb": 4, "system": "Linux"}, {}, controls=[1.0])
        for row, figures in rows.items():
            spec = Spec(f"x.{row}", "ours", "theirs")
            session.add(spec, Finding(figures[0], 1.0, *figures))
        paper.write(session, tmp_path)
        return str(tmp_path / f"{name}.json")

    old = run("old", same=(1.0, 0.9, 1.1), worse=(1.0, 0.9, 1.1), better=(1.0, 0.9, 1.1), gone=(1.0, 0.9, 1.1))
    new = run("new", same=(1.05, 1.0, 1.2), worse=(1.3, 1.2, 1.4), better=(0.5, 0.4, 0.6))

    assert main(["--compare", old, new]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines[:3]] == ["overlap", "APART, worse", "APART, better"]
    assert lines[0].split()[:5] == ["x.same", "1.00", "(0.900", "to", "1.10)"]
    assert lines[3] == f"Only in {old}: x.gone."
    assert main(["--compare", old, "never"]) == 2
    assert "no such run" in capsys.readouterr().err


def test_void_rows_and_runs_are_not_compared() -> None:
    row = found(1.0, 0.9, 1.1)

    assert between.verdict(row, row) == "overlap"
    assert between.verdict(row, row | {"void": True}) == "not comparable"
    assert between.verdict(row, row | {"low": None, "high": None}) == "no interval"
