"""Nothing that we start outlives us, even if we are killed with -9.

Two strings, because each has a hole: the kernel's parent-death signal reaches only the child itself, not what the child
starts; the guard, a shell of one megabyte that kills whole process groups once our end of its pipe is gone, hears of a
child only after it was started.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
# Looked up before any fork: between fork and exec a child of a process with threads must not load or lock anything.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)

# Lines "+ GROUP" and "- GROUP" until the pipe ends; then every group still held is killed.
_GUARD = """
held=" "
while read -r sign group; do
  case $sign in
    +) held="$held$group " ;;
    -) held="${held%%" $group "*} ${held#*" $group "}" ;;
  esac
done
for group in $held; do kill -KILL "-$group" 2>/dev/null; done
"""


def tie() -> Callable[[], None]:
    """Return what a child runs before exec so that it dies with the thread that forks it."""
    parent = os.getpid()

    def arm() -> None:
        if _PRCTL is not None:
            _PRCTL(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # died before the signal was set
            os._exit(1)

    return arm


class Guard:
    """A process that outlives us by a moment, to kill the groups that it holds. Without /bin/sh there is none."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self._shell = subprocess.Popen(  # noqa: S603  a constant script
                ["/bin/sh", "-c", _GUARD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )

    def hold(self, group: int) -> None:
        """Kill this process group when we die."""
        self._say(f"+ {group}\n")

    def drop(self, group: int) -> None:
        """The group has ended; its number may soon be somebody else's."""
        self._say(f"- {group}\n")

    def close(self) -> None:
        """Let the guard go; groups still held are killed."""
        if self._shell is not None and self._shell.stdin is not None:
            with suppress(OSError):
                self._shell.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._shell.wait(2.0)
            self._shell = None

    def _say(self, line: str) -> None:
        if self._shell is not None and self._shell.stdin is not None:
            with suppress(OSError):
                self._shell.stdin.write(line.encode())
