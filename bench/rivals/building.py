"""Builds the clients in Go, into .tools/, which git does not see. Minutes the first time, a second from then on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from bench import ROOT
from bench.row import Skipped

SOURCES = Path(__file__).parent / "go"
BINARY = ROOT / ".tools" / "bin" / "rivals"
_PATIENCE = 900.0


class BuildFailed(Skipped):
    """Go is here and the program did not build: its modules cannot be had, perhaps. Go's words are on stderr."""

    is_fault = True


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
        print(done.stderr.strip()[-2000:], file=sys.stderr)
        raise BuildFailed("the rivals do not build: see what Go says above, or `go build` in bench/rivals/go")
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
