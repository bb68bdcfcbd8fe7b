"""Metrics that become Prometheus's own when its library is imported: here by hand, into a registry of the test's."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry import meters
from mesh.telemetry.tally import tally_of

LABELS = ("a",)


@pytest.fixture(autouse=True)
def before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has imported the library yet, as far as the meters know."""
    monkeypatch.setattr(meters, "_LIBRARY", "a library that is not there")
    monkeypatch.setattr(meters, "_meters", [])


class Page:
    """The library, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        kinds = ("Counter", "Gauge", "Histogram")
        library: Any = {kind: getattr(prometheus_client, kind) for kind in kinds}
        self.library = SimpleNamespace(REGISTRY=self.registry, **library)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def test_a_counter_is_handed_over_with_what_it_had_and_goes_on() -> None:
    page, counter = Page(), meters.Counter("m", "M.", LABELS)
    series = counter.labels("x")
    series.inc()
    series.inc(2)
    assert counter.labels("x") is series
    counter.become(page.library)
    assert page("m_total", a="x") == 3
    series.inc(4)
    counter.labels("x").inc()
    assert page("m_total", a="x") == 8


def test_what_is_counted_elsewhere_for_a_while_is_there_when_the_page_is_read() -> None:
    page = Page()
    counter, times = meters.Counter("m", "M.", LABELS), meters.Histogram("s", "S.", LABELS, buckets=(1.0, 2.0))
    add = tally_of(times.labels("x"), counter.labels("x"))
    add(0.5)
    for meter in (counter, times):
        meter.become(page.library)
    add(1.5)
    assert (page("m_total", a="x"), page("s_count", a="x"), page("s_bucket", a="x", le="1.0")) == (2, 2, 1)
    add(1.5)
    assert b's_bucket{a="x",le="2.0"} 3.0' in prometheus_client.generate_latest(page.registry)
    add(1.5)
    # What `?name[]=` of the page asks for.
    only: Any = page.registry.restricted_registry(["m_total"])
    assert b'm_total{a="x"} 4.0' in prometheus_client.generate_latest(only)


def test_what_threads_count_while_it_is_handed_over_is_not_lost() -> None:
    page, counter = Page(), meters.Counter("m", "M.", LABELS)
    begun = threading.Barrier(5)

    def count() -> None:
        series = counter.labels("x")
        begun.wait()
        for _ in range(2000):
            series.inc()
            counter.labels("x").inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    counter.become(page.library)
    for thread in threads:
        thread.join()
    assert page("m_total", a="x") == 16000


def test_a_gauge_is_handed_over_as_it_stands() -> None:
    page, gauge = Page(), meters.Gauge("m", "M.", LABELS)
    moved, told = gauge.labels("moved"), gauge.labels("told")
    moved.set(7)
    moved.inc(2)
    moved.dec()
    told.set_function(lambda: 11)
    gauge.become(page.library)
    assert (page("m", a="moved"), page("m", a="told")) == (8, 11)
    moved.set(3)
    moved.dec()
    told.set_function(lambda: 12)
    assert (page("m", a="moved"), page("m", a="told")) == (2, 12)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 9.0])), st.lists(st.sampled_from([0.0, 1.0, 9.0])))
def test_a_histogram_that_was_handed_over_is_as_one_that_always_was_the_librarys(
    early: list[float], late: list[float]
) -> None:
    page, known = Page(), Page()
    ours = meters.Histogram("m", "M.", LABELS, buckets=(1.0, 2.0))
    series = ours.labels("x")
    its = known.library.Histogram("m", "M.", LABELS, buckets=(1.0, 2.0), registry=known.registry).labels("x")
    for seconds in early:
        series.observe(seconds)
        its.observe(seconds)
    ours.become(page.library)
    for seconds in late:
        series.observe(seconds)
        its.observe(seconds)

    def read(registry: Any) -> list[tuple[object, ...]]:
        samples = [s for metric in registry.collect() for s in metric.samples]
        return [(s.name, s.labels, s.value) for s in samples if not s.name.endswith("_created")]

    assert read(page.registry) == read(known.registry)


def test_a_metric_without_labels_is_there_from_the_beginning() -> None:
    page, counter, gauge = Page(), meters.Counter("m", "M."), meters.Gauge("g", "G.")
    counter.become(page.library)
    assert page("m_total") == 0
    counter.inc()
    assert page("m_total") == 1
    gauge.set_function(lambda: 5)
    gauge.become(page.library)
    assert page("g") == 5


def test_a_metric_made_after_the_library_was_imported_is_the_librarys_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page()
    monkeypatch.setattr(meters, "_LIBRARY", "the_library")
    monkeypatch.setitem(sys.modules, "the_library", page.library)  # type: ignore[arg-type]  # looks like one
    meters.Counter("m", "M.", LABELS).labels("x").inc()
    assert page("m_total", a="x") == 1


# Run where the library cannot be loaded at first, is missing, and then is there.
IMPORTS = """
import sys
from mesh.telemetry import metrics
metrics.CLIENT_HEDGES.labels("s", "m").inc()

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "prometheus_client.registry":
            raise ImportError("broken")

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "prometheus_client":
            raise ModuleNotFoundError("missing", name=name)

for trouble in (Broken(), Missing()):
    sys.meta_path.insert(1, trouble)
    try:
        import prometheus_client
    except ImportError as e:
        print(e)
    sys.meta_path.remove(trouble)
for name in [n for n in sys.modules if n.startswith("prometheus_client")]:
    del sys.modules[name]
import prometheus_client
print(prometheus_client.REGISTRY.get_sample_value("mesh_client_hedges_total", {"service": "s", "method": "m"}))
print(type(prometheus_client.__loader__).__name__, prometheus_client.__loader__ is prometheus_client.__spec__.loader)
"""


def test_an_import_that_fails_hands_nothing_over_and_the_next_one_everything() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.returncode) == (
        ["broken", "missing", "1.0", "SourceFileLoader", "True"],
        0,
    ), done.stderr
