"""The clients in Go, as the bench uses them: they build, they find instances, and they tell what became of calls."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.rivals import building
from bench.rivals.arena import KINDS, Rival, Spare, Story, beside, etcd_of, wait
from bench.row import Skipped
from bench.site import Site

# One worker: the first build compiles grpc-go, the client of etcd and go-zero.
pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("rivals")]


@pytest.fixture(scope="module")
def program() -> str:
    try:
        return str(building.build())
    except Skipped as e:
        if isinstance(e, building.BuildFailed) and os.environ.get("CI") == "true":
            raise
        pytest.skip(str(e))


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(scale=0.02, tell=lambda _: None) as site:
        yield site


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_caller_follows_an_instance_that_comes_and_leaves(kind: str, site: Site, program: str) -> None:
    times: list[float] = []
    with etcd_of(site) as etcd:
        base, spare = Spare(site), Spare(site)
        rival = Rival(site, kind, etcd.endpoint, program=program, bases=[base.address])

        def events() -> None:
            wait(0.1)
            rival.registry.add(spare.address)
            wait(1.0)
            times.append(time.time())
            rival.registry.leave(spare.address)
            wait(1.0)

        story = rival.under_load(100, events)

    assert story.first_on(spare.address, 0.0) is not None
    assert story.last_on(spare.address, times[0]) < 0.9
    assert story.last_on(base.address, times[0]) > 0.9
    assert story.failed() == 0
    assert len(story.calls) > 100


def test_a_story_tells_first_last_and_failed_calls() -> None:
    told = {
        "calls": [[0, 3_000_000_000, 3_100_000_000, "OK", "b"], [0, 1_000_000_000, 1_500_000_000, "Unavailable", ""]],
        "attempts": [[4_000_000_000, "b"], [1_000_000_000, "a"]],
    }

    story = Story.read(told)

    assert story.first_on("b", 2.0) == 1.0
    assert story.first_on("b", 3.5) is None
    assert story.last_on("b", 2.0) == 2.0
    assert story.last_on("a", 2.0) == 0.0
    assert (story.failed(), story.failed(since=2.0)) == (1, 0)


def test_short_times_are_compared_as_they_are() -> None:
    assert beside([0.0, 0.0], [0.0, 0.0]).ratio == 1.0
    assert beside([0.4, 0.4], [0.1, 0.1]).ratio == pytest.approx(4.0)
    assert beside([0.0, 0.0, 3.0], [0.0, 0.0, 2.0], middle=statistics.fmean).ratio == pytest.approx(1.5)
    assert beside([1.0], [0.0]).ratio == pytest.approx(1000.0)


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go here")
def test_sources_name_the_versions_that_are_told() -> None:
    assert building.versions().count(",") == 2
    assert "?" not in building.versions()


def test_without_go_the_rows_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(Skipped, match="no Go here"):
        building.build()
