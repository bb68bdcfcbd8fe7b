"""Every limit that the page quotes can be measured by the command that it names, in a form so small that the figures
mean nothing; and no limit is quoted that there is none of.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import row
from bench.limits import LIMITS, Limit
from bench.limits import __main__ as command
from bench.row import Skipped
from bench.site import Site

ROOT = Path(__file__).parents[2]
# One worker, as for all that runs the clients in Go: the first build takes minutes.
pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("rivals")]


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(scale=0.02, tell=lambda _: None) as site:
        yield site


@pytest.mark.parametrize("limit", LIMITS.values(), ids=lambda limit: limit.name)
def test_a_limit_is_measured_and_told(limit: Limit, site: Site) -> None:
    try:
        figures = limit.measure(site)
    except Skipped as e:
        if e.is_fault and os.environ.get("CI") == "true":
            raise
        pytest.skip(str(e))

    assert figures
    for what, found in figures.items():
        for value in (found.ours, found.low, found.high, *([found.ratio] if found.baseline is not None else [])):
            assert value is not None and math.isfinite(value), what
        assert min(map(len, found.samples.values())) > 1, what
    assert len(command.table(figures).splitlines()) == len(figures)


@pytest.mark.parametrize(("name", "reason"), [("connection", "no Go"), ("dying", "no Go"), ("instructions", "no valg")])
def test_what_needs_a_program_that_is_not_here_is_skipped_with_the_reason(
    name: str, reason: str, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(Skipped, match=reason):
        LIMITS[name].measure(site)


def test_the_texts_of_the_rows_name_limits_that_there_are() -> None:
    told = " ".join(spec.limit for m in row.load() for spec in m.specs)

    named = set(re.findall(r"`python -m bench\.limits ([^`]+)`", told))

    assert named
    assert named <= set(LIMITS)


def test_the_command_lists_them_and_refuses_what_is_none() -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "bench.limits", *args]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert [line.split()[0] for line in run("--list").stdout.splitlines()] == list(LIMITS)
    refused = run("timre")
    assert refused.returncode == 2
    assert refused.stderr == "no such limit: timre. `python -m bench.limits --list` has them.\n"
    measured = run("modules", "--scale", "0.02")
    assert measured.returncode == 0
    assert "ms CPU" in measured.stdout
