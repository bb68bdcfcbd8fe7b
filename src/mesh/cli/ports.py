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


def claim(port: int, option: str, dice: Dice) -> socket.socket:
    """Reserve `port` if it is free, a free one for 0; raise Failure that names `option` otherwise.

    The socket that is returned is bound and does not listen: as long as it is open nobody is given the port by chance,
    while a server that sets SO_REUSEADDR, as they all do, can have it, again after a restart too.
    """
    if port == 0:
        return _reserve_any(dice)
    reserved = _socket(reuse=True)  # what a server that has ended left in TIME_WAIT is no reason to refuse
    try:
        reserved.bind((LOOPBACK, port))
    except OSError as e:
        reserved.close()
        if e.errno in (errno.EACCES, errno.EPERM):
            raise Failure(
                f"{LOOPBACK}:{port} may not be used by you: choose a port above 1023 with {option}", code=MISUSED
            ) from e
        raise Failure(f"{LOOPBACK}:{port} is taken by another program: stop it or choose {option}", code=MISUSED) from e
    return reserved


def free(dice: Dice) -> int:
    """Return a port that nobody uses now."""
    with _reserve_any(dice) as reserved:
        return port_of(reserved)


def port_of(reserved: socket.socket) -> int:
    """Return the port of a reservation."""
    port: int = reserved.getsockname()[1]
    return port


def _reserve_any(dice: Dice) -> socket.socket:
    for _ in range(1000):
        reserved = _socket(reuse=False)
        with suppress(OSError):
            reserved.bind((LOOPBACK, _LOW + dice.randrange(_HIGH - _LOW)))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return reserved
        reserved.close()
    raise Failure(f"there is no free port from {_LOW} to {_HIGH} on {LOOPBACK}")


def _socket(*, reuse: bool) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    return made


def listening(group: int) -> list[int]:
    """Return the ports that processes of a group listen on, sorted. Best effort: what /proc shows to us."""
    inodes = {inode for pid in _members(group) for inode in _sockets(pid)}
    return sorted({port for inode, port in _listeners() if inode in inodes})


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
