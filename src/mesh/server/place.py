"""Where a server is: the address it binds, the address it tells others, and the name of its instance."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import re
import socket
from collections.abc import Iterable

import grpc

from mesh.clock import Dice
from mesh.errors import InvalidName, SettingsError
from mesh.instance import Endpoint
from mesh.settings import Settings

_log = logging.getLogger("mesh.server")

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
# 36^8: a million instances of one host name meet by chance once in six thousand fleets.
_RANDOM_LENGTH = 8


def instance_id(settings: Settings, dice: Dice) -> str:
    """Return the instance's name: as set, or the host's with something random, so that a restart is somebody new."""
    if settings.instance_id:
        return settings.instance_id
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname().split(".")[0])[:63].strip("-") or "instance"
    return f"{host}-{''.join(_ALPHABET[dice.randrange(len(_ALPHABET))] for _ in range(_RANDOM_LENGTH))}"


def bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None) -> Endpoint:
    """Bind a server's port and return where; raise SettingsError, in one sentence, if that cannot be."""
    host, port = _parse(listen)
    _probe(host, port)
    try:
        bound = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as e:
        raise SettingsError(f"cannot listen on {host}:{port}: set MESH_LISTEN to another address") from e
    return Endpoint(host, bound)


async def advertised(bound: Endpoint, settings: Settings) -> Endpoint:
    """Return the address to tell others: the one set, else the one bound, else the one that etcd is reached from.

    Raises SettingsError if it cannot be known.
    """
    if settings.advertise:
        return _set_address(settings.advertise, bound.port)
    if not _is_any(bound.host):
        return bound
    host = await _outgoing_host(settings.etcd)
    if host is None:
        raise SettingsError(
            f"MESH_LISTEN is {settings.listen}, every address, and which of them others should use is not to be seen:"
            " set MESH_ADVERTISE=host:port"
        )
    chosen = Endpoint(host, bound.port)
    _log.info(
        "telling others %s, from where etcd is reached; MESH_ADVERTISE changes it",
        chosen,
        extra={"event.action": "address-chosen", "service.address": str(chosen)},
    )
    return chosen


def _parse(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    try:
        # Port 0 is none for an endpoint but one to bind.
        Endpoint.parse(f"{host}:1")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise InvalidName(port)
    except InvalidName:
        raise SettingsError(f"MESH_LISTEN is {listen[:80]!r}: write host:port, e.g. 127.0.0.1:50051") from None
    return host, int(port)


def _set_address(text: str, port: int) -> Endpoint:
    """Read MESH_ADVERTISE: "host:port", or a host alone for the port that was bound."""
    try:
        return Endpoint.parse(text if text.rpartition(":")[2].isdigit() and ":" in text else f"{text}:{port}")
    except InvalidName as e:
        raise SettingsError(f"MESH_ADVERTISE: {e}") from None


def _probe(host: str, port: int) -> None:
    """Bind by hand and let go again, because grpc does not tell why it could not, and tells so on stderr."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # As grpc does: connections that ended a moment ago are no hindrance, a listener is.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port))
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            why = (
                f"{host}:{port} is taken by another process: set MESH_LISTEN to another port, or to 0 for any free one"
            )
        elif e.errno == errno.EACCES:
            why = f"{host}:{port} needs privileges: set MESH_LISTEN to a port from 1024 on"
        else:
            why = f"cannot listen on {host}:{port}: {e.strerror or e}; MESH_LISTEN wants an address of this machine"
        raise SettingsError(why) from e


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


async def _outgoing_host(targets: Iterable[Endpoint]) -> str | None:
    """Return this machine's address on the way to the first target there is a way to. Nothing is sent."""
    loop = asyncio.get_running_loop()
    for target in targets:
        try:
            found = await loop.getaddrinfo(target.host.strip("[]"), target.port, type=socket.SOCK_DGRAM)
            family, kind, _, _, address = found[0]
            with socket.socket(family, kind) as probe:
                probe.connect(address)
                host = str(probe.getsockname()[0])
        except OSError:
            continue
        return f"[{host}]" if family == socket.AF_INET6 else host
    return None
