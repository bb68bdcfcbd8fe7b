"""Scenarios from data: what is read, and that nothing else than a ScenarioError comes of nonsense."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy import BreakerPolicy, BudgetPolicy, RetryPolicy
from mesh.simulation import ScenarioError, read_scenarios
from mesh.simulation.scenario import Spread

LEAST = {
    "duration": "10s",
    "servers": {"count": 4, "service_time": "20ms"},
    "clients": {"count": 2, "calls_per_second": 5},
}


def read(**settings: object):
    """Return the least scenario there is, with other values at some paths ("__" for a dot)."""
    (scenario,) = read_scenarios(LEAST, {path.replace("__", "."): value for path, value in settings.items()})
    return scenario


def test_what_is_not_said_is_as_in_a_real_client():
    clients = read().clients
    assert clients.retry == RetryPolicy()
    assert clients.breaker == BreakerPolicy()
    assert clients.budget == BudgetPolicy()
    assert clients.attempt_timeout is None


@pytest.mark.parametrize("off", [False, "off", "no"])
def test_what_is_off_is_off(off):
    clients = read(clients__breaker=off, clients__retry__budget=off, clients__idempotent=off).clients
    assert clients.breaker is None
    assert clients.budget is None
    assert not clients.idempotent
    assert read(clients__retry=off).clients.retry.max_attempts == 1
    assert read(clients__breaker=True).clients.breaker == BreakerPolicy()


@pytest.mark.parametrize(
    ("written", "seconds"), [("250ms", 0.25), ("5s", 5), ("1.5 s", 1.5), ("2m", 120), (3, 3), (0.1, 0.1)]
)
def test_times_have_units_and_are_seconds_without(written, seconds):
    assert read(clients__deadline=written).clients.deadline == pytest.approx(seconds)


def test_policies_are_written_by_their_own_names():
    clients = read(
        clients__retry={"max_attempts": 3, "initial_backoff": "10ms", "codes": ["UNAVAILABLE", "ABORTED"]},
        clients__breaker={"open_for": "5s", "consecutive_failures": 3},
    ).clients
    assert clients.retry == RetryPolicy(3, 0.01, codes=frozenset({"UNAVAILABLE", "ABORTED"}))
    assert clients.breaker == BreakerPolicy(open_for=5, consecutive_failures=3)


def test_a_service_time_is_a_time_a_mean_or_two_quantiles():
    times = [
        read(servers__service_time=time).servers.service_time
        for time in ("20ms", {"mean": "20ms"}, {"p50": "20ms", "p99": "100ms"})
    ]
    assert [time.spread for time in times] == [Spread.ALWAYS, Spread.EXPONENTIAL, Spread.LOGNORMAL]
    assert [round(time.mean, 4) for time in times] == [0.02, 0.02, 0.0254]


@pytest.mark.parametrize(("written", "count"), [(1, 1), ("all", 4), ("50%", 2), ("1%", 1), ("100%", 4)])
def test_servers_are_counted_or_are_a_share(written, count):
    fault = {"kind": "crash", "at": "2s", "for": "1s", "servers": written}
    assert read(faults=[fault]).faults[0].servers == count


def test_variants_differ_in_what_they_say_and_a_setting_is_over_them_all():
    data = LEAST | {"variants": {"a": None, "b": {"clients.retry.budget": False, "servers.count": 7}}}
    one, other = read_scenarios(data, {"servers.count": 9})
    assert (one.name, other.name) == ("a", "b")
    assert one.clients.budget is not None
    assert other.clients.budget is None
    assert one.servers.count == other.servers.count == 9
    assert [s.servers.count for s in read_scenarios(data)] == [4, 7]


def test_what_a_variant_switches_off_stays_off():
    data = LEAST | {"variants": {"on": {}, "off": {"clients.retry.budget": False}}}
    one, other = read_scenarios(data, {"clients.retry.budget.per_second": 0})
    assert one.clients.budget == BudgetPolicy(per_second=0)
    assert other.clients.budget is None


NONSENSE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["1s", "all", "50%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PATHS = st.sampled_from(
    ["", "duration", "servers", "servers.count", "servers.service_time", "servers.service_time.p50", "clients",
     "clients.retry", "clients.retry.codes", "clients.retry.budget.share", "clients.breaker", "clients.breaker.window",
     "clients.balancer", "faults", "faults.0", "faults.0.servers", "faults.0.kind", "variants", "variants.a", "seed"]
)  # fmt: skip


@given(st.dictionaries(PATHS, NONSENSE, max_size=4), st.booleans())
def test_nonsense_is_refused_in_words_or_read_and_never_breaks(settings, whole):
    data = LEAST | {"faults": [{"kind": "crash", "at": "2s", "for": "1s"}]} if whole else settings
    with contextlib.suppress(ScenarioError):
        for scenario in read_scenarios(data, settings):
            assert scenario.offered > 0
            assert scenario.servers.capacity > 0
