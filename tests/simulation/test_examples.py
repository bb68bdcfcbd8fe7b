"""The scenarios in examples/scenarios, and what they are there to show."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from mesh.simulation import Report, read_scenarios, report_of, simulate
from mesh.wallclock import dice

FOLDER = Path(__file__).parents[2] / "examples" / "scenarios"


@cache
def reports(name: str, *variants: str, **settings: object) -> dict[str, Report]:
    """Run an example, or only these variants of it, and return its reports by variant."""
    data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    scenarios = [s for s in read_scenarios(data, changes) if not variants or s.name in variants]
    return {s.name: report_of(s, simulate(s, dice)) for s in scenarios}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_retry_storm_outlives_its_trigger_without_a_budget_and_not_with_one(seed):
    with_it, without = (reports("retry-storm", seed=seed)[v] for v in ("budget on", "budget off"))
    for report in (with_it, without):
        assert report.phase("before").success_rate > 0.999
        assert report.phase("before").load < 0.8
    # The trigger is gone for forty seconds; the load that it left behind is not.
    assert without.recovered is None
    assert without.phase("after").load > 1.5
    assert without.phase("after").success_rate < 0.05
    assert without.series.goodput[-10:] == pytest.approx([0] * 10, abs=20)
    assert with_it.recovered is not None
    assert with_it.recovered <= 5
    assert with_it.phase("after").load < 0.75
    assert with_it.phase("after").success_rate > 0.94


def test_it_is_the_budget_that_ends_the_storm_and_not_the_breakers():
    found = reports("retry-storm", clients__breaker=False)
    assert found["budget on"].recovered is not None
    assert found["budget off"].recovered is None


def test_servers_that_drop_what_nobody_waits_for_do_not_end_it_either():
    found = reports("retry-storm", servers__abandoned="dropped")
    assert found["budget on"].recovered is not None
    assert found["budget off"].recovered is None


def test_an_outage_of_everything_costs_a_tenth_more_load_with_a_budget_and_four_times_without():
    found = reports("outage")
    during = {name: report.phase("during") for name, report in found.items()}
    # What was saved is spent, and calls that fail earn nothing more.
    assert during["budget on"].attempts_per_call == pytest.approx(1.06, abs=0.04)
    assert during["budget off"].attempts_per_call == pytest.approx(4, abs=0.05)
    assert during["budget and breakers off"].attempts_per_call == pytest.approx(4, abs=0.05)
    for report in found.values():
        assert report.recovered is not None
        assert report.recovered <= 1
        assert report.phase("after").success_rate > 0.999


def test_one_slow_host_is_left_alone_by_its_load_at_once_and_by_a_breaker_after_some_calls():
    found = {name: report.phase("during") for name, report in reports("one-slow-host").items()}
    # Of the calls that find out one in ten takes more than its second: 27 of 30,000, give or take 7 by the seed.
    slow = [reports("one-slow-host", "least loaded", seed=s)["least loaded"].phase("during") for s in range(1, 9)]
    assert sum(phase.succeeded for phase in slow) / sum(phase.calls for phase in slow) > 0.999
    assert found["round robin"].success_rate > 0.98
    assert found["round robin, no breakers"].success_rate < 0.92
    for report in reports("one-slow-host").values():
        assert report.phase("after").success_rate > 0.999


def test_a_grey_host_is_left_by_round_robin_because_the_others_are_quick():
    found = reports("grey-host")
    during = {name: report.phase("during") for name, report in found.items()}
    healthy = found["as it is"].phase("before").p99
    assert during["as it is"].p99 <= 2 * healthy
    assert during["least loaded, not compared"].p99 <= 2 * healthy
    assert during["not compared with the others"].p99 > 50 * healthy
    assert all(phase.success_rate > 0.999 for phase in during.values())


def test_servers_with_a_limit_answer_what_they_can_under_three_times_that_load():
    limited, open_to_all = (reports("overload")[name] for name in ("adaptive limit", "no limit"))
    during, capacity = limited.phase("during"), limited.scenario.servers.capacity
    assert during.load == pytest.approx(3, rel=0.05)
    assert during.goodput > 0.9 * capacity
    assert during.p99 is not None
    assert during.p99 < 0.3
    assert during.attempts_per_call < 1.01  # a refusal is not repeated
    assert limited.recovered == 0
    assert open_to_all.phase("during").goodput < 0.3 * capacity


def test_a_rolling_restart_that_says_goodbye_fails_no_call_and_one_that_does_not_fails_some():
    found = reports("rolling-restart")
    calm = found["said goodbye"]
    assert all(phase.succeeded == phase.calls for phase in calm.phases)
    assert max(phase.attempts_per_call for phase in calm.phases) == 1
    assert found["killed"].phase("during").succeeded < found["killed"].phase("during").calls


def test_two_thousand_clients_hardly_notice_two_hundred_of_a_thousand_servers_that_are_away():
    (report,) = reports("fleet").values()
    assert (report.scenario.clients.count, report.scenario.servers.count) == (2000, 1000)
    during, after = report.phase("during"), report.phase("after")
    assert during.calls > 15_000
    assert during.success_rate > 0.999
    assert during.attempts_per_call <= 1.2
    assert report.recovered is not None
    assert report.recovered <= 1
    assert after.success_rate == 1
    assert after.attempts_per_call < 1.001


def test_every_example_says_what_it_is_about():
    files = sorted(FOLDER.glob("*.yaml"))
    names = {"fleet", "grey-host", "one-slow-host", "outage", "overload", "retry-storm", "rolling-restart"}
    assert {f.stem for f in files} == names
    for file in files:
        assert all(s.about for s in read_scenarios(yaml.safe_load(file.read_text())))
