"""Successes that are counted in plain numbers for a while."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mesh.telemetry import tally
from mesh.telemetry.meters import Series, Times

BOUNDS = (0.01, 0.1)


class Told:
    """A counter and a histogram."""

    def __init__(self) -> None:
        self.counter, self.times = Series(), Times(BOUNDS)
        counter: Any = self.counter
        times: Any = self.times
        self.add = tally.tally_of(times, counter)

    @property
    def counted(self) -> tuple[float, list[float]]:
        return self.counter._amount, [bucket._amount for bucket in self.times._buckets]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(tally, "_tallies", {})
    monkeypatch.setattr(tally, "_due", 0.0)
    return Told()


def test_what_succeeds_is_counted_where_prometheus_would_when_somebody_reads(told: Told) -> None:
    for seconds in (0.001, 0.01, 0.05, 3.0):
        told.add(seconds)
    assert told.counted == (0, [0, 0, 0])
    tally.flush()
    assert told.counted == (4, [2, 1, 1])
    assert abs(told.times._sum._amount - 3.061) < 1e-9
    tally.flush()
    assert told.counted == (4, [2, 1, 1])


def test_calls_hand_over_a_few_times_a_second_however_many_ask(told: Told) -> None:
    now, counts = 100.0, []
    for _ in range(5):
        told.add(0.05)
        tally.flush(now)
        counts.append(told.counted[0])
        now += tally.EVERY / 2 + 1e-9
    assert counts == [1, 1, 3, 3, 5]


def test_a_call_does_not_wait_for_who_hands_over_already(told: Told) -> None:
    told.add(0.05)
    with tally._flushing:
        other = threading.Thread(target=tally.flush, args=(1.0,))
        other.start()
        other.join(10)
        assert not other.is_alive()
        assert told.counted == (0, [0, 0, 0])
    tally.flush(1.0)
    assert told.counted == (1, [0, 1, 0])


def test_whoever_interrupts_a_hand_over_and_reads_goes_without(told: Told) -> None:
    told.add(0.05)
    with tally._flushing:  # as a signal handler finds it, in the same thread
        tally.flush()
        tally.flush(1.0)
        assert told.counted == (0, [0, 0, 0])
    tally.flush()
    assert told.counted == (1, [0, 1, 0])


def test_a_child_does_not_wait_for_a_thread_of_its_parent(told: Told) -> None:
    # As it is after a fork in the middle of a hand-over by another thread.
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with tally._flushing:
            begun.set()
            over.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(10)
    left = tally._flushing
    try:
        tally._forked()
        told.add(0.05)
        tally.flush()
        assert told.counted == (1, [0, 1, 0])
    finally:
        over.set()
        holder.join()
        tally._flushing = left


def test_those_that_count_the_same_share_a_list_which_outlives_them(told: Told) -> None:
    times: Any = told.times
    again, told_of, another = (
        add.__self__  # type: ignore[attr-defined]  # each is a list's append
        for add in (tally.tally_of(times), told.add, Told().add)
    )
    assert again is told_of
    assert again is not another


def test_what_threads_add_while_it_is_handed_over_is_counted_once(told: Told) -> None:
    begun = threading.Barrier(5)

    def add() -> None:
        begun.wait()
        for _ in range(20_000):
            told.add(0.05)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    while any(thread.is_alive() for thread in threads):
        tally.flush()
    tally.flush()
    assert told.counted == (80_000, [0, 80_000, 0])


# The library's numbers are files then, and whoever reads them is another process, which cannot ask.
BESIDE = """
import os, sys
from mesh.telemetry import metrics
from mesh.telemetry.tally import flush, tally_of

os.environ[sys.argv[1]] = sys.argv[2]
from prometheus_client import CollectorRegistry, multiprocess

seconds = metrics.SERVER_CALL_SECONDS.labels("s", "m")
add = tally_of(seconds, metrics.SERVER_CALLS.labels("s", "m", "OK"))
for number in range(3):
    add(0.05)
    flush(float(number))
page = CollectorRegistry()
multiprocess.MultiProcessCollector(page)
print(page.get_sample_value("mesh_server_calls_total", {"service": "s", "method": "m", "code": "OK"}))
"""


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_where_another_process_reads_every_call_hands_over_at_once(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, name, str(tmp_path)],
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.split(), done.returncode) == (["3.0"], 0), done.stderr
