"""What drills are judged and written down by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drills import __main__ as program
from drills import paper
from drills.drill import REGISTRY
from drills.fault import Rule
from drills.judging import rows
from drills.site import Fact, Setup, Tally
from drills.soak import Minute, verdict
from support.load import Outcome, Report


def row(
    rule: Rule,
    *calls: Outcome,
    injected: float = 10.0,
    healed: float = float("inf"),
    name: str = "killed",
    peaks: Sequence[tuple[float, float]] = (),
    attempts: float = 1.0,
    borne: float = 1.0,
) -> Any:
    """Judge the calls of one road by a rule."""
    site: Any = SimpleNamespace(roads=("mesh",), short=False, setup=Setup(), facts=[], drained=None)
    site.injected, site.healed, site.peaks = injected, healed, peaks
    site.borne = {"mesh": Tally(100, 100 * borne)}
    site.fact = lambda what, value, limit, *_: site.facts.append(Fact(what, value, limit))
    return rows(replace(REGISTRY[name], rule=rule), site, {"mesh": Report("mesh", calls)}, {"mesh": attempts})[0]


def call(start: float, seconds: float = 0.01, code: str = "OK", detail: str = "") -> Outcome:
    return Outcome(start, seconds, "mesh get", code, detail)


def test_one_failure_more_than_allowed_is_not_met() -> None:
    assert row(Rule(failed=1), call(1), call(11, code="UNAVAILABLE"))["met"]
    told = row(Rule(failed=1), call(1), call(11, code="UNAVAILABLE"), call(12, code="ABORTED"))
    assert not told["met"]
    assert (told["calls"], told["failed"]) == (3, 2)
    assert "1 UNAVAILABLE of reads" in told["missed"][0]


def test_recovery_is_told_by_the_last_bad_call_slow_ones_too() -> None:
    told = row(Rule(recover=2.5), call(1), call(11), call(13, seconds=0.9), call(14))
    assert told["recover_s"] == 3.0
    assert not told["met"]
    assert row(Rule(recover=3.5), call(1), call(13, seconds=0.9))["met"]


def test_p99_is_held_against_the_calm_before() -> None:
    calm = [call(n / 10) for n in range(99)]
    assert row(Rule(p99_factor=2.0), *calm, call(16, seconds=0.015))["met"]
    assert not row(Rule(p99_factor=2.0), *calm, call(16, seconds=0.3))["met"]
    assert row(Rule(p99_factor=2.0), *calm, call(12, seconds=0.3), call(16))["met"]  # in the five seconds it is given


def test_errors_are_held_to_codes_and_words() -> None:
    rule = Rule(failed=None, codes=("UNAVAILABLE",), words=("sqlite",))
    assert row(rule, call(1), call(11, code="UNAVAILABLE", detail="later"))["met"]
    assert not row(rule, call(1), call(11, code="UNKNOWN"))["met"]
    assert not row(rule, call(1), call(11, code="UNAVAILABLE", detail="SQLite said"))["met"]


def test_running_one_fault_replaces_its_rows_alone(tmp_path: Path) -> None:
    first = [{**row(Rule(), call(11), name=name), "busy": 3} for name in ("hung", "killed")]
    paper.write(paper.merge(first, tmp_path), REGISTRY, tmp_path)
    again = {**row(Rule(), call(11), call(12), name="hung"), "busy": 3}
    merged = paper.merge([again], tmp_path)
    assert [(told["fault"], told["calls"]) for told in merged] == [("killed", 1), ("hung", 2)]
    paper.write(merged, REGISTRY, tmp_path)
    assert "| instance hung" in (tmp_path / "drills.md").read_text()


def test_a_run_is_gone_on_with_at_the_faults_not_run_since(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = ({**row(Rule(), call(11), name=name), "busy": 3} for name in ("hung", "killed"))
    old["date"] = "2001-01-01 00:00 UTC"
    tried: list[str] = []
    monkeypatch.setattr(paper, "merge", lambda rows: [old, new])
    monkeypatch.setattr(program, "_one", lambda name, label, given: tried.append(name))
    assert program.main(["hung", "killed", "grey", "--since", "2020-01-01 00:00"]) == 0
    assert tried == ["hung", "grey"]


def test_goodput_is_held_against_the_best_stretch_and_refusals_against_their_median() -> None:
    rule = Rule(failed=None, goodput=0.8, refusals=0.010)
    peak = [call(n / 10) for n in range(100)]
    shed = [call(12 + n / 10, seconds=0.005, code="RESOURCE_EXHAUSTED") for n in range(20)]
    site = {"peaks": [(0.0, 5.0), (5.0, 10.0)], "healed": 20.0}
    assert row(rule, *peak, *shed, *(call(10 + n / 9) for n in range(89)), **site)["met"]
    told = row(rule, *peak, *shed, *(call(10 + n / 7) for n in range(69)), **site)
    assert "goodput short of the peak of 10 a second" in told["missed"][0]
    slow = [replace(each, seconds=0.5) for each in shed]
    told = row(rule, *peak, *slow, *(call(10 + n / 9) for n in range(89)), **site)
    assert told["missed"] == ["half of 20 refusals took over 500 ms"]
    assert "p99 of refusals, seconds: 0.5 (no demand)" in told["facts"]


def test_nobody_may_make_more_of_a_fault_than_a_fifth_more_calls() -> None:
    assert all(fault.rule.attempts is not None and fault.rule.attempts <= 1.2 for fault in REGISTRY.values())
    assert row(Rule(), call(11), attempts=1.2, borne=1.2)["met"]
    told = row(Rule(), call(11), attempts=1.21, borne=1.2)
    assert told["missed"] == ["1.210 attempts per call, at most 1.2 may be"]
    told = row(Rule(), call(11), attempts=1.1, borne=1.5)
    assert told["missed"] == ["attempts per call while the fault lasted: 1.5 (at most 1.2)"]


def test_what_a_process_counted_is_not_taken_from_the_one_after_it() -> None:
    before = Tally(100, 110, pid=1)
    assert Tally(150, 170, pid=1).since(before).amplification == 60 / 50
    assert Tally(150, 165, pid=2).since(before).amplification == 1.1


def test_a_soak_judges_each_call_by_the_fault_of_its_minute_and_counts_what_stories_missed() -> None:
    minutes = [
        Minute("the calm before", Rule(), 0.0),
        Minute("hung", Rule(failed=1, recover=2.5), 10.0, injected=11.0),
        Minute("failing", Rule(failed=None, success=0.5), 70.0, injected=70.0),
        Minute("killed", Rule(), 130.0, injected=130.0, missed=["edge key gone, seconds: 12 (at most 11)"]),
    ]
    good = [call(5), call(12, code="UNAVAILABLE"), call(30), call(75), call(80, code="UNAVAILABLE"), call(140)]
    assert verdict(minutes, {"mesh": Report("mesh", good)}) == ["3 killed: edge key gone, seconds: 12 (at most 11)"]
    bad = [call(5, code="UNAVAILABLE"), call(14, code="UNAVAILABLE"), call(80, code="UNAVAILABLE"), call(69, 0.6)]
    assert verdict(minutes[:3], {"edge": Report("edge", bad)}) == [
        "0 the calm before, edge: 1 failed, at most 0 may (1 UNAVAILABLE of reads)",
        "1 hung, edge: bad calls until 58.00 s after the injection, at most 2.5 s",
        "2 failing, edge: 0.00 % succeeded (1 UNAVAILABLE of reads)",
    ]


def test_a_soak_draws_from_every_fault_that_its_site_can_bear_within_a_minute() -> None:
    drawn = [fault for fault in REGISTRY.values() if fault.soak]
    assert len(drawn) >= 20
    for fault in drawn:
        assert fault.setup.etcds == 1, fault.name
        assert not (fault.setup.tls or fault.setup.disk or fault.setup.postgres or fault.setup.clock), fault.name


def test_what_is_committed_is_what_the_rows_say() -> None:
    """The page is made from the rows: every row of drills.json is in it, and of faults that there are."""
    committed = json.loads((paper.DOCS / "drills.json").read_text())
    told = (paper.DOCS / "drills.md").read_text()
    assert committed
    for each in committed:
        assert each["met"] == (not each["missed"])
        assert f"{REGISTRY[each['fault']].sentence}" in told
