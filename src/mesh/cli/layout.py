"""What the local stack consists of: addresses, environments and command lines, decided before anything is started."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.cli import FORKS, QUIET, authority, ports, programs
from mesh.cli.folder import MARK, DataFolder
from mesh.clock import Clock, Dice
from mesh.instance import Endpoint
from mesh.settings import Settings, TLSFiles

DEFAULT_COMMAND = ("python", "-m", "usersvc")
EDGE_PORT, ETCD_PORT, CONTROL_PLANE_PORT, ADMIN_PORT = 8080, 2379, 18000, 9901

# What only makes sense for one process, or what the stack decides by itself, is not passed on from our own environment.
_OURS = (
    "MESH_LISTEN",
    "MESH_ADVERTISE",
    "MESH_INSTANCE_ID",
    "MESH_METRICS",
    "MESH_TLS_CA",
    "MESH_TLS_CERT",
    "MESH_TLS_KEY",
)
_ETCD = (
    "MESH_ETCD", "MESH_ETCD_USER", "MESH_ETCD_PASSWORD", "MESH_ETCD_PASSWORD_FILE",
    "MESH_ETCD_TLS_CA", "MESH_ETCD_TLS_CERT", "MESH_ETCD_TLS_KEY",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `mesh up` was asked for. Ports of 0 are chosen. `etcd` is one that runs already."""

    data: Path = Path(".mesh")
    instances: int = 3
    port: int = EDGE_PORT
    etcd: Endpoint | None = None
    etcd_port: int = ETCD_PORT
    control_plane_port: int = CONTROL_PLANE_PORT
    admin_port: int = ADMIN_PORT
    tls: bool = False
    database: str = ""
    timeout: float = 60.0
    command: tuple[str, ...] = DEFAULT_COMMAND


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything of one stack is.

    files: certificates by role, empty without TLS. metrics: the pages of the control plane and of the instances.
    reserved: keeps the ports ours, also while a process is down; to be released at the end.
    """

    options: Options
    folder: DataFolder
    edge: Endpoint
    etcd: Endpoint
    etcd_peer: Endpoint
    control_plane: Endpoint
    admin: Endpoint
    metrics: tuple[Endpoint, ...]
    files: Mapping[str, TLSFiles]
    command: tuple[str, ...]
    short_name: str
    reserved: tuple[socket.socket, ...]

    @classmethod
    def decide(cls, options: Options, folder: DataFolder, clock: Clock, dice: Dice) -> Layout:
        """Check ports and programs and make certificates. Raises Failure; starts nothing."""

        reserved: list[socket.socket] = []

        def place(port: int, option: str = "") -> Endpoint:
            reserved.append(ports.claim(port, option, dice))
            return Endpoint(ports.LOOPBACK, ports.port_of(reserved[-1]))

        programs.envoy()
        if options.etcd is None:
            programs.etcd()
        command = programs.resolve(options.command)
        elsewhere = "--etcd-port, or use that etcd with --etcd HOST:PORT"
        with folder.errors():
            files = authority.ensure(folder.tls, clock.time()) if options.tls else {}
        return cls(
            options=options,
            folder=folder,
            edge=place(options.port, "--port"),
            etcd=options.etcd or place(options.etcd_port, elsewhere),
            etcd_peer=place(0),
            control_plane=place(options.control_plane_port, "--control-plane-port"),
            admin=place(options.admin_port, "--admin-port"),
            metrics=tuple(place(0) for _ in range(1 + options.instances)),
            files=files,
            command=command,
            short_name=programs.short_name(options.command),
            reserved=tuple(reserved),
        )

    def release(self) -> None:
        """Let others have the ports."""
        for each in self.reserved:
            each.close()

    @property
    def instance_names(self) -> tuple[str, ...]:
        """Names of the instances' processes, which are also their ids in the mesh."""
        return tuple(f"{self.short_name}-{n}" for n in range(1, self.options.instances + 1))

    def metrics_of(self, name: str) -> Endpoint | None:
        """Return where a process has its page of metrics; None where it has none of ours."""
        return dict(zip(("control-plane", *self.instance_names), self.metrics, strict=True)).get(name)

    def settings(self, role: str = "client") -> Settings:
        """Return the settings of a party of this stack."""
        return Settings.from_env(self.environment(role))

    def environment(self, role: str) -> dict[str, str]:
        """Return the environment of a process: ours, with what the stack decides put in its place."""
        env = {name: value for name, value in os.environ.items() if name not in self._hidden()}
        if env.get(FORKS) == QUIET[FORKS]:
            del env[FORKS]  # for us alone; a service may fork as it likes
        # Programs of this Python's environment (mesh, grpcurl wheels…) are found whether it is activated or not.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
        env |= {"PYTHONUNBUFFERED": "1", MARK: str(self.folder.path.resolve())}
        env.setdefault("GRPC_VERBOSITY", "NONE")  # what it writes by itself is not JSON, and the logs are
        if role == "control-plane":
            env["MESH_METRICS"] = str(self.metrics_of(role))
        return env | self.variables(role)

    def variables(self, role: str = "client") -> dict[str, str]:
        """Return the variables that point a program at this stack."""
        told = {"MESH_ETCD": str(self.etcd)}
        names = ["MESH_TLS"] if self.options.etcd else ["MESH_TLS", "MESH_ETCD_TLS"]
        if self.files:
            files = self.files[role]
            for name in names:
                told |= {f"{name}_CA": str(files.ca), f"{name}_CERT": str(files.cert), f"{name}_KEY": str(files.key)}
        return {name: value if name == "MESH_ETCD" else str(Path(value).resolve()) for name, value in told.items()}

    def instance_environment(self, name: str) -> dict[str, str]:
        """Return the environment of one instance."""
        database = self.options.database or os.environ.get("USERS_DATABASE", "")
        database = database or f"sqlite:///{(self.folder.path / 'users.db').resolve()}"
        return self.environment("instance") | {
            "MESH_LISTEN": f"{ports.LOOPBACK}:0",
            "MESH_INSTANCE_ID": name,
            "MESH_METRICS": str(self.metrics_of(name)),
            "USERS_DATABASE": database,
        }

    def etcd_command(self) -> tuple[str, ...]:
        """Return how to run etcd: one member on loopback; with TLS, only for certificates of our authority."""
        scheme = "https" if self.files else "http"
        client, peer = f"{scheme}://{self.etcd}", f"{scheme}://{self.etcd_peer}"
        command = (
            *programs.etcd(),
            "--name=mesh", f"--data-dir={self.folder.etcd}",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=mesh={peer}",
            "--logger=zap", "--log-outputs=stderr", "--log-level=warn",
            "--auto-compaction-mode=periodic", "--auto-compaction-retention=1h",
        )  # fmt: skip
        if not self.files:
            return command
        files = self.files["etcd"]
        mutual = tuple(
            f"--{side}{option}"
            for side in ("", "peer-")
            for option in (
                f"cert-file={files.cert}",
                f"key-file={files.key}",
                f"trusted-ca-file={files.ca}",
                "client-cert-auth",
            )
        )
        return (*command, *mutual)

    def control_plane_command(self) -> tuple[str, ...]:
        """Return how to run the control plane."""
        return (sys.executable, "-m", "mesh", "control-plane", "--listen", str(self.control_plane))

    def envoy_command(self) -> tuple[str, ...]:
        """Return how to run Envoy with the file that was rendered into the folder."""
        return (
            *programs.envoy(),
            "-c", str(self.folder.path / "envoy.yaml"),
            "--disable-hot-restart",  # it needs a machine-wide shared memory, and nobody takes over here
            "--concurrency", "1", "--log-level", "warning", "--drain-time-s", "1",
        )  # fmt: skip

    def _hidden(self) -> frozenset[str]:
        return frozenset(_OURS if self.options.etcd else (*_OURS, *_ETCD))


def has_room(path: Path, wanted: int = 64 * 1024 * 1024) -> bool:
    """Whether the file system has room for a stack: etcd preallocates 64 MB of log."""
    return shutil.disk_usage(path).free >= wanted
