"""Builds the clients in Go, into .tools/, which git does not see. Minutes the first time, a second from then on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bench import ROOT
from bench.row import Skipped

SOURCES = Path(__file__).parent / "go"
BINARY = ROOT / ".tools" / "bin" / "rivals"
_PATIENCE = 900.0


class BuildFailed(Skipped):
    """Go is here and the program did not build: its modules cannot be had, perhaps. The text has what Go said."""


def build() -> Path:
    """Return the program, built if need be. Raises Skipped without Go, BuildFailed where building fails."""
    go = shutil.which("go")
    if go is None:
        raise Skipped("no Go here: the rivals are written in Go")
    # go-zero knows Kubernetes too, which makes four fifths of the program and is not measured.
    command = [go, "build", "-tags", "no_k8s", "-ldflags=-s -w", "-o", str(BINARY), "."]
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, timeout=_PATIENCE)
    if done.returncode:
        raise BuildFailed(f"the rivals do not build: {done.stderr.strip()[-2000:]}")
    return BINARY


def versions() -> str:
    """Return what the program is made of, for the notes of a row."""
    told = dict(line.split()[:2] for line in (SOURCES / "go.mod").read_text().splitlines() if line.startswith("\t"))
    names = {
        "grpc-go": "google.golang.org/grpc",
        "etcd client": "go.etcd.io/etcd/client/v3",
        "go-zero": "github.com/zeromicro/go-zero",
    }
    return ", ".join(f"{name} {told.get(module, '?').lstrip('v')}" for name, module in names.items())
