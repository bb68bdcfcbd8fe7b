"""Who serves what, and where: the values that registry, clients and control plane share.

Pure values, no behaviour that waits. The form they take in the store is `mesh.registry.record`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import NamedTuple

from mesh.errors import InvalidName

# A proto full name: identifiers joined by dots. It becomes part of a key in the store and of a URL path, so nothing
# else may pass (no "/", no "..", no control characters).
_SERVICE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(\.[A-Za-z_][A-Za-z0-9_]{0,63}){0,15}")
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")


def check_service_name(name: str) -> str:
    """Return `name` if it is a proto full name such as "users.v1.UserService"; raise InvalidName otherwise."""
    if not _SERVICE.fullmatch(name) or len(name) > 255:
        raise InvalidName(f"{name[:80]!r} is no service name: write a proto full name such as 'users.v1.UserService'")
    return name


def check_instance_id(name: str) -> str:
    """Return `name` if it may name an instance; raise InvalidName otherwise."""
    if not _INSTANCE.fullmatch(name):
        raise InvalidName(f"{name[:80]!r} is no instance id: use up to 128 of A-Z a-z 0-9 . _ ~ -")
    return name


class Endpoint(NamedTuple):
    """How an instance is reached: a host name or IP address (IPv6 in brackets) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read "host:port"; raise InvalidName on anything else, a port outside 1 to 65535 included."""
        host, _, port = text.rpartition(":")
        if not _HOST.fullmatch(host) or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise InvalidName(f"{text[:80]!r} is no address: write host:port, e.g. 127.0.0.1:50051")
        return cls(host, int(port))


class State(enum.StrEnum):
    """What an instance says of itself in the store."""

    READY = "ready"
    DRAINING = "draining"
    """Finishes what it has; asks for nothing new. Announced before it leaves."""
    PAUSED = "paused"
    """Alive but taken out by an operator or by its own health."""


class Instance(NamedTuple):
    """A running server of one service, as it is known to others."""

    service: str
    id: str
    endpoint: Endpoint
    zone: str = ""
    version: str = ""
    weight: int = 1
    state: State = State.READY
    started: float = 0.0
    """Seconds since 1970, UTC."""
    contract: str = ""
    """SHA-256, in hex, of its FileDescriptorSet; empty where it brings none."""

    def with_state(self, state: State) -> Instance:
        """Return the same instance in another state."""
        return self._replace(state=state)


class View(NamedTuple):
    """All we know of a service now: its instances, sorted by id. The whole set, never a difference.

    known: False until the store was read once. An unknown view is empty but says nothing.
    stale: True while the store cannot be reached; the instances are then those of the last reading.
    """

    service: str
    instances: tuple[Instance, ...] = ()
    known: bool = False
    stale: bool = False

    @classmethod
    def of(cls, service: str, instances: Iterable[Instance], *, stale: bool = False) -> View:
        """Build a known view, sorted by instance id."""
        return cls(service, tuple(sorted(instances, key=lambda i: i.id)), known=True, stale=stale)

    @property
    def ready(self) -> tuple[Instance, ...]:
        """The instances that want calls."""
        return tuple(i for i in self.instances if i.state is State.READY)


class AttemptRecord(NamedTuple):
    """One try of a call, as told in errors, logs and traces.

    endpoint: "host:port", or "" where no endpoint could be picked.
    code: name of the status code, e.g. "UNAVAILABLE".
    ms: how long it took, in milliseconds.
    """

    endpoint: str
    code: str
    ms: float
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.endpoint or 'no endpoint'} {self.code} {self.ms:.0f} ms"
