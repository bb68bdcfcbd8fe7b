"""The data folder of `mesh up`: its lock, its log files, and what it tells other programs (stack.json, env).

One `mesh up` owns a folder at a time; the kernel lets go of the lock whatever becomes of its owner. Every error of the
file system becomes one sentence that says what to do.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mesh.cli.failure import MISUSED, Failure

MARK = "MESH_STACK"
"""Variable in the environment of every process that a stack starts; its value is the folder."""

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder with --data",
    errno.EDQUOT: "free some space, or choose another folder with --data",
    errno.EROFS: "choose a folder that can be written with --data",
    errno.EACCES: "choose a folder that you may write with --data",
    errno.EPERM: "choose a folder that you may write with --data",
    errno.ENOTDIR: "something on the way is a file; choose another folder with --data",
    errno.EEXIST: "it is a file; choose another folder with --data",
}


class DataFolder:
    """A folder that this process owns until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.tls = path / "tls"
        self.etcd = path / "etcd"
        self.hold = path / "hold"
        self.stack = path / "stack.json"
        self.env = path / "env"
        self._lock: IO[str] | None = None

    def take(self) -> None:
        """Make the folder, lock it, and clear what a stack that was killed has left. Raises Failure."""
        with self.errors():
            for each in (self.path, self.logs, self.hold):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._acquire()
            self._end_leftovers()
            for stale in (self.stack, self.env, *self.hold.iterdir()):
                stale.unlink(missing_ok=True)

    def release(self) -> None:
        """Forget the stack and unlock the folder. Harmless when repeated."""
        if self._lock is None:
            return
        with suppress(OSError):
            self.stack.unlink(missing_ok=True)
            self.env.unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.logs / f"{name}.log"

    def write(self, path: Path, text: str) -> None:
        """Replace a file in one step, readable by its owner alone. Raises Failure."""
        with self.errors():
            draft = path.with_name(f".{path.name}.new")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
            draft.replace(path)

    def tell(self, stack: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        """Write stack.json, and `env` for shells: `. .mesh/env` points any program at this stack."""
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
        self.write(self.env, exports)
        self.write(self.stack, json.dumps(stack, indent=2) + "\n")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Tell errors of the file system in one sentence."""
        try:
            yield
        except OSError as e:
            remedy = _REMEDIES.get(e.errno or 0, "choose another folder with --data")
            raise Failure(
                f"cannot write {e.filename2 or e.filename or self.path}: {e.strerror}: {remedy}", code=MISUSED
            ) from e

    def _acquire(self) -> None:
        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise Failure(
                f"another `mesh up` (pid {owner}) uses {self.path}: stop it or choose --data", code=MISUSED
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _end_leftovers(self) -> None:
        """Kill what is left of a stack in this folder whose owner is gone; the mark makes sure that it is ours."""
        mark = f"{MARK}={self.path.resolve()}".encode()
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                        os.kill(int(entry.name), signal.SIGKILL)


def read_stack(path: Path) -> Mapping[str, Any] | None:
    """Return what a running `mesh up` tells of itself in `path`, or None if there is none."""
    try:
        told = json.loads((path / "stack.json").read_text())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
