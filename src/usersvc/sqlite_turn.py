"""Whose turn it is to write, among several processes on one SQLite file.

SQLite has a lock but no queue: who finds it taken sleeps for up to 100 ms and tries again, and a process with much to
write takes it anew before the sleeper wakes. Three processes that wrote all they could had a p99 of 100 ms; in turn it
is 15 ms, for three quarters of the throughput (16,000 writes/s together).

Here one of those that wait holds the turn (a lock on a file beside the database) and asks for SQLite's lock often; the
others ask for the turn. Whoever has just written has to ask for the turn like all others, so nobody is passed over for
long. It is a courtesy, not a safeguard: a turn that cannot be had in time is done without, SQLite's lock decides. The
kernel gives the turn back when its holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path

_STEP = 0.0005  # seconds between two questions


class Turn:
    """A turn to write. One thread owns it."""

    def __init__(self, database: Path) -> None:
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open(f"{database}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._never = threading.Event()
        self._mine = False

    def take(self, patience: float) -> None:
        """Wait for the turn, at most about so many seconds."""
        steps = int(patience / _STEP)
        while self._file >= 0 and not self._mine and steps > 0:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._mine = True
            except BlockingIOError:
                self.pause()
                steps -= 1
            except OSError:  # a file system without locks: do without
                return

    def pause(self, tries: int = 0) -> None:
        """Wait for a moment between two questions; a longer one when many were in vain."""
        self._never.wait(_STEP if tries < 200 else _STEP * 20)

    def give_back(self) -> None:
        """Let another have the turn."""
        if self._mine:
            self._mine = False
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
