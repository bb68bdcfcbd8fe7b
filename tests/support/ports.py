"""Free ports on loopback, for tests that run side by side.

Ports come from below the kernel's ephemeral range, so that no outgoing connection takes one between its choice and its
use, and are drawn at random, so that several pytest processes rarely meet.
"""

from __future__ import annotations

import random
import socket

_EPHEMERAL_FROM = 32768
_given: set[int] = set()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on and that this process has not been given before."""
    for _ in range(1000):
        port = random.randrange(12000, _EPHEMERAL_FROM - 1)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise RuntimeError("no free port found between 12000 and 32767")


def free_ports(count: int) -> tuple[int, ...]:
    """Return several distinct free ports."""
    return tuple(free_port() for _ in range(count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
