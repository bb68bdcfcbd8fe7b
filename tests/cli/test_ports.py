"""Ports on this machine."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys

import pytest

from mesh.cli import ports
from mesh.cli.failure import Failure
from mesh.wallclock import DICE


def test_a_taken_port_is_told_with_the_option_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Failure) as refused:
            ports.claim(port, "--port", DICE)
    assert str(refused.value) == f"127.0.0.1:{port} is taken by another program: stop it or choose --port"
    assert refused.value.code == 2


def test_a_privileged_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(Failure, match=r"127\.0\.0\.1:80 may not be used by you: choose a port above 1023 with --port"):
        ports.claim(80, "--port", DICE)


def test_a_port_is_free_again_at_once_after_its_server_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    with ports.claim(port, "--port", DICE) as reserved:
        assert ports.port_of(reserved) == port


def test_chosen_ports_are_below_those_of_outgoing_connections() -> None:
    assert all(20_000 <= ports.free(DICE) < 32_000 for _ in range(20))


def test_a_reserved_port_is_nobody_elses_but_its_servers() -> None:
    with ports.claim(0, "", DICE) as reserved:
        port = ports.port_of(reserved)
        with socket.socket() as stranger, pytest.raises(OSError, match="Address already in use"):
            stranger.bind(("127.0.0.1", port))
        for _ in range(2):  # and once more, as after a restart
            with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
                pass


def test_what_a_group_listens_on_is_seen_children_included() -> None:
    code = """
import os, socket, sys
a = socket.create_server(("127.0.0.1", 0))
read, write = os.pipe()
if os.fork() == 0:
    b = socket.create_server(("127.0.0.1", 0))
    a.close()
    os.write(write, b"%d" % b.getsockname()[1])
    sys.stdin.read()
    os._exit(0)
print(a.getsockname()[1], os.read(read, 99).decode(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        bound = sorted(map(int, process.stdout.readline().split()))
        assert len(bound) == 2
        assert ports.listening(process.pid) == bound
        assert not set(bound) & set(ports.listening(os.getpgrp()))
        process.communicate()
    assert ports.listening(process.pid) == []
