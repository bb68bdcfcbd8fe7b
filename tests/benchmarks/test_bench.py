"""The bench itself, in a form so small that its figures mean nothing: it runs, it writes what it says, it ends."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import curves, paper, row
from bench.measure import Finding
from bench.site import Site

ROOT = Path(__file__).parents[2]
KEYS = ["row", "ours", "baseline", "ratio", "low", "high", "goal", "moonshot", "met", "command"]


def bench(*args: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def check_shape(written: dict[str, Any]) -> None:
    assert list(written) == [*KEYS, "detail"], written
    found = row.flat(written)
    assert found["command"] == f"python -m bench {found['row']}"
    for key in ("ours", "baseline", "ratio", "low", "high", "goal", "moonshot"):
        assert found[key] is None or (isinstance(found[key], int | float) and math.isfinite(found[key])), found
    assert found["met"] in (True, False, None)
    if found.get("skipped"):
        assert found["ours"] is None
    elif found["ratio"] is not None:
        assert found["low"] <= found["ratio"] <= found["high"], found


@pytest.mark.parametrize(
    "rows",
    [
        ["client.one", "client.blocking", "client.stream-stream", "client.alone"],
        ["server", "users.get", "users.create", "users.read"],
        ["pick"],
        ["startup"],
        ["edge"],
        ["discovery"],
        ["sidecar"],
    ],
    ids=lambda rows: rows[0],
)
def test_rows_are_measured_and_written(rows: list[str], tmp_path: Path) -> None:
    done = bench(*rows, "--scale", "0.02", "--out", str(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    names = [spec.name for m in row.load() for spec in m.specs]
    assert {r["row"] for r in written} == {n for n in names if n in rows or n.partition(".")[0] in rows}
    for found in written:
        check_shape(found)
        assert not found["detail"].get("skipped"), found
        assert f"`{found['command']}`" in (tmp_path / "benchmarks.md").read_text()
    (session,) = tmp_path.glob("2*.json")
    kept = json.loads(session.read_text())
    assert kept["samples"].keys() == {r["row"] for r in written}
    assert {"cores", "memory_gb"} <= kept["machine"].keys()
    assert {"python", "grpcio", "commit"} <= kept["versions"].keys()


def test_rows_measured_again_replace_their_own_lines_and_leave_the_others(tmp_path: Path) -> None:
    names = ("edge.get", "startup.size")
    before = [{**dict.fromkeys(KEYS), "row": name, "detail": {"session": "before"}} for name in names]
    (tmp_path / "benchmarks.json").write_text(json.dumps(before))
    session = paper.Session("now", {"cores": 2, "memory_gb": 4, "system": "Linux"}, {"python": "3"}, controls=[1.0])
    session.add(row.Spec("startup.size", "ours"), Finding(1.0))

    rows = paper.read(tmp_path)
    kept = paper.merged(rows, session.rows)

    assert [(r["row"], r["session"]) for r in kept] == [("edge.get", "before"), ("startup.size", "now")]


@pytest.mark.parametrize(("control", "why"), [(1.08, "void"), (None, "it broke")])
def test_a_row_that_does_not_count_never_replaces_one_that_does_and_the_page_says_so(
    control: float | None, why: str, tmp_path: Path
) -> None:
    spec, machine = row.Spec("edge.get", "ours", "theirs"), {"cores": 2, "memory_gb": 4, "system": "Linux"}
    first, bad, good = (paper.Session(name, machine, {}, controls=[1.0]) for name in ("first", "bad", "good"))
    first.add(spec, Finding(1.0, 1.0, 1.0, 0.9, 1.1))
    good.add(spec, Finding(1.3, 1.0, 1.3, 1.2, 1.4))
    if control is None:
        bad.skip([spec], why, broken=True)
    else:
        bad.add(spec, Finding(1.2, 1.0, 1.2, 1.1, 1.3, control=control))
    told = f"as session first found it; that of bad is not taken ({why})"

    assert paper.write(first, tmp_path) == []
    assert paper.write(bad, tmp_path) == [f"edge.get: {told}"]
    assert [(r["ratio"], r["session"]) for r in paper.read(tmp_path)] == [(1.0, "first")]
    assert f"- `edge.get`: {told}." in (tmp_path / "benchmarks.md").read_text()

    assert paper.write(good, tmp_path) == []
    assert [(r["ratio"], r["session"]) for r in paper.read(tmp_path)] == [(1.3, "good")]
    assert "not taken" not in (tmp_path / "benchmarks.md").read_text()
    assert paper.merged([], bad.rows) == bad.rows  # better than nothing: the page says why


def test_a_void_run_says_so_and_replaces_nothing(tmp_path: Path) -> None:
    session = paper.Session("now", {}, {}, controls=[1.0, 1.04])
    session.skip([row.Spec("startup.size", "ours")], "a test")

    paper.write(session, tmp_path)

    assert json.loads((tmp_path / "now.json").read_text())["void"] is True
    assert not (tmp_path / "benchmarks.json").exists()


def test_two_recorded_runs_are_compared_row_by_row() -> None:
    before, after = sorted(path.stem for path in paper.RESULTS.glob("*.json"))[:2]

    done = bench("--compare", before, after)

    assert done.returncode == 0, done.stderr
    shared = set.intersection(
        *(
            {r["row"] for r in json.loads((paper.RESULTS / f"{run}.json").read_text())["rows"]}
            for run in (before, after)
        )
    )
    told = [line for line in done.stdout.splitlines() if not line.startswith("Only in ")]
    assert {line.split()[0] for line in told} == shared
    assert bench("--compare", before, "none").stderr.startswith("no such run: ")


def test_ctrl_c_ends_the_bench_and_all_that_it_started() -> None:
    command = [sys.executable, "-m", "bench", "client.one", "--dry"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children: list[psutil.Process] = []
        while not children:
            children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert "nothing was written" in told
    assert not [child for child in children if child.is_running()]


def test_ctrl_c_while_a_process_is_being_started_does_not_lose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    born: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            born.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), Site() as site:
        site.python("-c", "input()", name="any")

    assert born[0].poll() is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_row_that_is_none_is_refused_with_a_sentence() -> None:
    done = bench("clent")

    assert done.returncode == 2
    assert done.stderr == "no such row: clent. `python -m bench --list` has them.\n"


def test_every_row_has_a_name_of_its_own_in_the_module_that_declares_it() -> None:
    specs = [spec for m in row.load() for spec in m.specs]

    assert len({spec.name for spec in specs}) == len(specs)
    for spec in specs:
        assert re.fullmatch(r"[a-z]+(\.[a-z0-9-]+)+", spec.name), spec.name
        assert (ROOT / "bench" / "rows" / f"{spec.name.partition('.')[0]}.py").exists()


def test_the_committed_rows_have_the_shape_that_is_promised_and_the_page_is_made_of_them() -> None:
    committed = paper.read()
    known = {spec.name for m in row.load() for spec in m.specs}

    assert committed
    for found in committed:
        check_shape(row.nested(found))
        assert found["row"] in known
        assert (paper.RESULTS / f"{found['session']}.json").exists()
    assert (paper.DOCS / "benchmarks.md").read_text() == paper.made()
    for name, picture in curves.pictures(committed).items():
        assert (paper.DOCS / name).read_text() == picture


def test_what_is_committed_names_no_machine_and_no_path() -> None:
    for path in [paper.DOCS / "benchmarks.json", paper.DOCS / "benchmarks.md", *paper.RESULTS.glob("*.json")]:
        assert not re.search(r"/home/|/root|/tmp|/Users/|hostname", path.read_text()), path
