"""TCP ports on this machine: whether one is free, one to use, and which ones a process group listens on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mesh.cli.failure import MISUSED, Failure
from mesh.clock import Dice

LOOPBACK = "127.0.0.1"

# Below the range that Linux gives to outgoing connections (32768 and up), so that a server which is started again finds
# its port free; above the ports of well-known programs.
_LOW, _HIGH = 20_000, 32_000
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


def claim(port: int, option: str, dice: Dice) -> int:
    """Return `port` if it is free, a free one for 0; raise Failure that names `option` otherwise."""
    if port == 0:
        return free(dice)
    problem = _bind(port)
    if problem == 0:
        return port
    if problem in (errno.EACCES, errno.EPERM):
        raise Failure(f"{LOOPBACK}:{port} may not be used by you: choose a port above 1023 with {option}", code=MISUSED)
    raise Failure(f"{LOOPBACK}:{port} is taken by another program: stop it or choose {option}", code=MISUSED)


def free(dice: Dice) -> int:
    """Return a port that nobody listens on now."""
    for _ in range(1000):
        port = _LOW + dice.randrange(_HIGH - _LOW)
        if _bind(port) == 0:
            return port
    raise Failure(f"there is no free port from {_LOW} to {_HIGH} on {LOOPBACK}")


def listening(group: int) -> list[int]:
    """Return the ports that processes of a group listen on, sorted. Best effort: what /proc shows to us."""
    inodes = {inode for pid in _members(group) for inode in _sockets(pid)}
    return sorted({port for inode, port in _listeners() if inode in inodes})


def _bind(port: int) -> int:
    """Return 0 if `port` can be bound, otherwise the errno."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no reason to refuse
        try:
            probe.bind((LOOPBACK, port))
        except OSError as e:
            return e.errno or errno.EADDRINUSE
    return 0


def _members(group: int) -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                if os.getpgid(int(entry.name)) == group:
                    yield int(entry.name)


def _sockets(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    yield target[8:-1]


def _listeners() -> Iterator[tuple[str, int]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    yield fields[9], int(fields[1].rpartition(":")[2], 16)
