"""`mesh simulate`, as people meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"
SMALL = """
duration: 12s
servers: {count: 3, concurrency: 4, service_time: {p50: 10ms, p99: 50ms}}
clients: {count: 5, calls_per_second: 20}
faults:
  - {kind: crash, at: 4s, for: 3s}
"""


def mesh(*arguments: object, columns: int = 90) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "mesh", "simulate", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": str(columns)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_the_same_scenario_is_told_the_same_way_twice_and_another_seed_differently(small):
    first, second, other = mesh(small), mesh(small), mesh(small, "--seed", 2)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert first.stdout != other.stdout
    assert first.stderr == ""


def test_the_table_has_a_row_for_each_phase_and_the_plot_names_the_fault(small):
    lines = mesh(small, columns=80).stdout.splitlines()
    for phase in ("before", "during", "after"):
        assert any(line.startswith(phase) for line in lines)
    assert any("━" in line and "1 of 3 down" in line for line in lines)
    assert any("█" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_what_the_file_says_of_itself_is_printed_as_it_is(small):
    assert mesh(small, "--set", "about='[bold]what[/] is [red]'").stdout.startswith("[bold]what[/] is [red]\n")


def test_json_is_for_programs(small):
    (told,) = json.loads(mesh(small, "--json").stdout)
    assert [phase["name"] for phase in told["phases"]] == ["before", "during", "after"]
    assert told["phases"][0]["success_rate"] == 1
    assert told["recovered_s"] is not None
    assert len(told["series"]["sent"]) == 12


def test_the_svg_stands_alone_and_knows_the_dark(small, tmp_path):
    done = mesh(small, "--svg", tmp_path / "plot.svg", "--set", 'about=<&> "what?"')
    text = (tmp_path / "plot.svg").read_text()
    assert "plot.svg" in done.stdout
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_setting_changes_one_value_wherever_it_stands(small):
    calm = json.loads(mesh(small, "--json", "--set", "faults=[]", "--set", "clients.retry.budget=off").stdout)
    assert [phase["name"] for phase in calm[0]["phases"]] == ["all"]
    heavier = json.loads(mesh(small, "--json", "--set", "clients.calls_per_second=40").stdout)
    assert heavier[0]["offered"] == 2 * calm[0]["offered"]


# Each mistake, and words of the one sentence that tells it.
MISTAKES = {
    "[]": "the scenario is a list: write a mapping",
    "": "the scenario is empty: write a mapping",
    "{a: [}": "line 1, is no YAML",
    "{duration: 5s}": "servers.count is missing: write a whole number",
    "{duration: soon}": "duration is 'soon': write a time such as 250ms, 5s or 2m",
    "{duration: 0}": "duration is 0: write a time such as 250ms, 5s or 2m, more than nothing",
    "{duration: -1s}": "duration is '-1s': write a time",
    "{duration: .inf}": "duration is inf: write a time",
    "{duration: 1s, servers: 5}": "servers is 5: write a mapping",
    "servers.count=0": "servers.count is 0: write a whole number from 1",
    "servers.count=true": "servers.count is on: write a whole number",
    "servers.count=2.5": "servers.count is 2.5: write a whole number",
    "servers.conurrency=5": "servers.conurrency means nothing: did you mean concurrency?",
    "servers.abandoned=droped": "servers.abandoned is 'droped': did you mean dropped?",
    "servers.service_time={p50: 1s}": "servers.service_time.p99 is missing",
    "servers.service_time={p50: 1s, p99: 10ms}": "servers.service_time.p99 is '10ms': write p50's 1 s or more",
    "clients.calls_per_second=0": "clients.calls_per_second is 0: write a number above 0",
    "clients.calls_per_second=.nan": "clients.calls_per_second is nan: write a number above 0",
    "clients.balancer=roundrobin": "clients.balancer is 'roundrobin': did you mean round_robin?",
    "clients.retry.codes=[UNAVAIL]": "clients.retry.codes is a list: write a list of status codes",
    "clients.retry.attempt_timeout=2s": "clients.retry.attempt_timeout is '2s': write the deadline's 1 s or less",
    "clients.retry.budget.share=lots": "clients.retry.budget.share is 'lots': write a number from 0",
    "clients.breaker.window=0": "clients.breaker.window is 0: write a whole number",
    "faults=crash": "faults is 'crash': write a list",
    "faults=[{kind: crush, at: 1s, for: 1s}]": "faults.0.kind is 'crush': did you mean crash?",
    "faults=[{at: 1s, for: 1s}]": "faults.0.kind is missing: write one of crash",
    "faults=[{kind: crash, at: 0.5, for: 1s}]": "faults.0.at is 0.5: write 1s or later",
    "faults=[{kind: crash, at: 5s, for: 9s}]": "faults.0 is over after 14 s and everything after 12 s",
    "faults=[{kind: errors, rate: 2, at: 5s, for: 1s}]": "faults.0.rate is 2: write a number above 0 to 1",
    "faults=[{kind: slow, factor: 0, at: 5s, for: 1s}]": "faults.0.factor is 0: write a number above 0",
    "faults=[{kind: crash, servers: 4, at: 5s, for: 1s}]": "faults.0.servers is 4: write a whole number from 1 to 3",
    "faults.3.factor=2": "faults.3.factor leads nowhere",
    "variants=[a]": "variants is a list: write a mapping of names to settings",
    "variants={a: 5}": "variants.a is no mapping",
    "clients={count: 100000, calls_per_second: 1}": "write clients.subset",
    "clients.calls_per_second=1000000": "that makes more than 20000000 calls",
    "clients": "'clients' sets nothing: write e.g. --set",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_that_says_where_and_what_to_write(mistake, small, capsys):
    from mesh.cli.app import run_app

    arguments = ["simulate", str(small)]
    if mistake.startswith(("{", "[")) or not mistake:
        small.write_text(mistake)
    else:
        given = SMALL if not mistake.startswith("clients={count: 100000") else SMALL.replace("count: 3", "count: 300")
        small.write_text(given)
        arguments += ["--set", mistake]
    assert run_app(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert MISTAKES[mistake] in said
    assert "Traceback" not in said


def test_files_that_are_not_there_or_cannot_be_written_are_told(small, tmp_path):
    for arguments in ([tmp_path / "no.yaml"], [tmp_path], [small, "--svg", tmp_path / "no" / "plot.svg"]):
        done = mesh(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("mesh: ")
        assert "Traceback" not in done.stderr
