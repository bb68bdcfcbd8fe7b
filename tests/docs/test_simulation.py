"""docs/simulation.md, as written: every command in it prints what is shown, give or take some in its numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mesh.simulation import read_scenarios

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "simulation.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    (command, shown)
    for language, text in BLOCKS
    if language == "console"
    for command, _, shown in (part.partition("\n") for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:])
]
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def alike(printed: str, shown: str) -> bool:
    """Whether the words are the same, and the numbers about the same."""
    words = [" ".join(_NUMBER.sub("N", text).split()) for text in (printed, shown)]
    pairs = zip(_NUMBER.findall(printed), _NUMBER.findall(shown), strict=False)
    return words[0] == words[1] and all(float(a) == pytest.approx(float(b), rel=0.25, abs=1) for a, b in pairs)


@pytest.mark.parametrize(("command", "shown"), COMMANDS, ids=[str(n) for n in range(len(COMMANDS))])
def test_a_command_prints_what_the_page_shows(command, shown, tmp_path):
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()[: len(shown.strip().splitlines())]
    assert alike("\n".join(lines), shown.strip()), done.stdout


def test_the_scenario_of_the_page_is_one():
    (text,) = (text for language, text in BLOCKS if language == "yaml")
    scenarios = read_scenarios(yaml.safe_load(text))
    assert [s.name for s in scenarios] == ["as it is", "without budget"]
    assert len(scenarios[0].faults) == 6
    assert scenarios[1].clients.budget is None
