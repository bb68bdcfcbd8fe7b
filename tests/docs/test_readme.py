"""README, as written: every command and every file in it, in the order in which a newcomer meets them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.grpcurl import binary
from support.stack import Stack

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the last file name in the words before it."""

    language: str
    text: str
    file: str

    def commands(self) -> list[tuple[str, str]]:
        """Return the commands of a console block, each with the output shown below it."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        return [(command, shown.strip()) for command, _, shown in (part.partition("\n") for part in parts)]


def blocks(section: str) -> list[Block]:
    """Return the blocks of the section with this heading."""
    body = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found, before = [], ""
    for index, part in enumerate(re.split(r"^```", body, flags=re.MULTILINE)):
        if index % 2 == 0:
            before = part
            continue
        language, _, text = part.partition("\n")
        names = re.findall(r"`([a-z_]+\.(?:proto|py))`", before)
        found.append(Block(language, text, names[-1] if names else ""))
    return found


def run(command: str, stack: Stack | None, folder: Path) -> str:
    """Run a command as a reader would with the environment activated, on the ports of this test; return its output."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{Path(binary()).parent}:{os.environ['PATH']}"}
    if stack is not None:
        command = command.replace("localhost:8080", stack.edge)
        env |= stack.environment
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.mark.stack
def test_the_first_two_minutes_work_as_written(tmp_path):
    start, tries = (block.commands() for block in blocks("Try it"))
    assert start == [("make up", "")]
    assert "$(BIN)/mesh up" in (ROOT / "Makefile").read_text()
    with Stack(tmp_path / "mesh") as stack:
        created, got, listed = (run(command, stack, tmp_path) for command, _ in tries)
    assert json.loads(created)["email"] == "ada@example.com"
    assert json.loads(got) == json.loads(created)
    assert "users.v1.UserService" in listed.split()


@pytest.mark.stack
def test_an_own_service_is_on_the_mesh_as_written(tmp_path):
    enter, contract, gen, server, up, client, tries = blocks("Put your own service on it")
    assert enter.commands()[0] == (". .venv/bin/activate", "")
    for block in (contract, server, client):
        (tmp_path / block.file).write_text(block.text)
    for command, _ in gen.commands():
        run(command, None, tmp_path)
    ((start, _),) = up.commands()
    assert start.startswith("mesh up ")
    with Stack(tmp_path / ".mesh", *start.split()[2:], folder=tmp_path) as stack:
        for command, shown in tries.commands():
            printed = run(command, stack, tmp_path)
            assert printed == shown or not shown
        assert printed.count("hello.v1.Greeter") >= 1


def test_every_link_in_the_documents_leads_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
