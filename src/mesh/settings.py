"""Where the mesh is and who we are in it. One frozen value, read from the environment once, at the door.

Every variable begins with MESH_ and stands in docs/settings.md. Tracing keeps OpenTelemetry's own OTEL_* names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mesh.errors import InvalidName, SettingsError
from mesh.instance import Endpoint, check_instance_id

if TYPE_CHECKING:
    from pathlib import Path

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_PREFIX = re.compile(r"[A-Za-z0-9._~-]{1,64}(/[A-Za-z0-9._~-]{1,64}){0,7}")
_LOCAL_ETCD = (Endpoint("127.0.0.1", 2379),)


class TLSFiles(NamedTuple):
    """PEM files of one party: the authority it trusts, and its own certificate and key. Read again when they change."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """Where the mesh is and who we are in it. Durations in seconds.

    etcd: members' addresses, tried in turn.
    etcd_user, etcd_password: where etcd asks for them; never shown by repr.
    tls: files for every connection to and from instances and the control plane; None is plain text.
    etcd_tls: files for etcd; None is plain text.
    prefix: where the mesh lives in etcd.
    listen: address to bind; port 0 lets the system choose.
    advertise: address told to others; by default the one bound.
    ttl: of the registration's lease.
    drain: longest time that calls in flight are waited for when leaving.
    settle: of it, what those who watch are given to move away before the port closes. A mesh client needs 0.1 s,
        Envoy behind the control plane 0.25 s; without it calls on their way meet a server that is gone.
    concurrency_min, concurrency_max: unary calls worked on at once; how many of that range is found by watching how
        long they take. More are refused. A highest of 0: no limit.
    metrics: address of the Prometheus page, or None for none.
    networks: CIDR blocks, with ports if wanted, that instances may be in; others are ignored and counted. Empty: any.
    """

    etcd: tuple[Endpoint, ...] = _LOCAL_ETCD
    etcd_user: str = ""
    etcd_password: str = ""
    tls: TLSFiles | None = None
    etcd_tls: TLSFiles | None = None
    prefix: str = "mesh"
    listen: str = "127.0.0.1:0"
    advertise: str = ""
    instance_id: str = ""
    zone: str = ""
    version: str = ""
    weight: int = 1
    ttl: float = 10.0
    drain: float = 10.0
    settle: float = 0.5
    concurrency_min: int = 100
    concurrency_max: int = 1000
    reflection: bool = True
    metrics: str = ""
    networks: tuple[str, ...] = ()
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if self.networks:
            _networks("networks", self.networks)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Read MESH_* variables, `overrides` winning; raise SettingsError in one sentence that names the variable."""
        read = _Reader(os.environ if env is None else env)
        values: dict[str, Any] = {
            "etcd": read.endpoints("MESH_ETCD", _LOCAL_ETCD),
            "etcd_user": read.text("MESH_ETCD_USER"),
            "etcd_password": read.secret("MESH_ETCD_PASSWORD"),
            "tls": read.tls("MESH_TLS"),
            "etcd_tls": read.tls("MESH_ETCD_TLS"),
            "prefix": read.prefix("MESH_PREFIX", "mesh"),
            "listen": read.text("MESH_LISTEN", "127.0.0.1:0"),
            "advertise": read.text("MESH_ADVERTISE"),
            "instance_id": read.text("MESH_INSTANCE_ID"),
            "zone": read.text("MESH_ZONE"),
            "version": read.text("MESH_VERSION"),
            "weight": read.whole("MESH_WEIGHT", 1, low=1, high=1000),
            "ttl": read.number("MESH_TTL", 10.0, low=2.0, high=600.0),
            "drain": read.number("MESH_DRAIN", 10.0, low=0.0, high=3600.0),
            "settle": read.number("MESH_SETTLE", 0.5, low=0.0, high=60.0),
            "concurrency_min": read.whole("MESH_CONCURRENCY_MIN", 100, low=1, high=100_000),
            "concurrency_max": read.whole("MESH_CONCURRENCY_MAX", 1000, low=0, high=100_000),
            "reflection": read.switch("MESH_REFLECTION", True),
            "metrics": read.text("MESH_METRICS"),
            "networks": read.networks("MESH_NETWORKS"),
            "log_level": read.level("MESH_LOG_LEVEL", "INFO"),
        } | overrides
        if values["instance_id"]:
            try:
                check_instance_id(values["instance_id"])
            except InvalidName as e:
                raise SettingsError(f"MESH_INSTANCE_ID: {e}") from e
        return cls(**values)

    def __repr__(self) -> str:
        return f"Settings(etcd={','.join(map(str, self.etcd))}, prefix={self.prefix!r}, listen={self.listen!r})"


def _networks(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    """Return them as they are written for short; raise SettingsError for one that is none."""
    from mesh.network import Network  # where there are any

    try:
        return tuple(str(Network.parse(text)) for text in texts)
    except InvalidName as e:
        raise SettingsError(f"{name}: {e}") from e


class _Reader:
    """Reads one variable at a time and says in one sentence what is wrong with it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str, default: str = "") -> str:
        return self._env.get(name, "").strip() or default

    def secret(self, name: str) -> str:
        file = self.text(f"{name}_FILE")
        if not file:
            return self._env.get(name, "")
        try:
            with open(file) as text:
                return text.read().rstrip("\n")
        except (OSError, UnicodeDecodeError) as e:
            why = e.strerror if isinstance(e, OSError) else "it is not text in UTF-8"
            raise SettingsError(f"{name}_FILE: cannot read {file}: {why}") from e

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        text = self.text(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise SettingsError(f"{name} is {text!r}: write a number from {low:g} to {high:g}")
        return value

    def whole(self, name: str, default: int, *, low: int, high: int) -> int:
        value = self.number(name, default, low=low, high=high)
        if value != int(value):
            raise SettingsError(f"{name} is {self.text(name)!r}: write a whole number from {low} to {high}")
        return int(value)

    def prefix(self, name: str, default: str) -> str:
        text = self.text(name, default).strip("/")
        if not _PREFIX.fullmatch(text):
            raise SettingsError(f"{name} is {text[:80]!r}: write names of A-Z a-z 0-9 . _ ~ - with / between them")
        return text

    def level(self, name: str, default: str) -> str:
        text = self.text(name, default).upper()
        if text not in _LEVELS:
            raise SettingsError(f"{name} is {text[:40]!r}: write one of {', '.join(_LEVELS)}")
        return text

    def switch(self, name: str, default: bool) -> bool:
        text = self.text(name).lower()
        if text not in ("", "1", "0", "true", "false", "yes", "no", "on", "off"):
            raise SettingsError(f"{name} is {text!r}: write true or false")
        return default if not text else text in ("1", "true", "yes", "on")

    def endpoints(self, name: str, default: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        text = self.text(name)
        try:
            return tuple(Endpoint.parse(part.strip()) for part in text.split(",")) if text else default
        except InvalidName as e:
            raise SettingsError(f"{name}: {e}") from e

    def networks(self, name: str) -> tuple[str, ...]:
        texts = self.text(name).replace(",", " ").split()
        return _networks(name, texts) if texts else ()

    def tls(self, name: str) -> TLSFiles | None:
        ca, cert, key = (self.text(f"{name}_{part}") for part in ("CA", "CERT", "KEY"))
        if not (ca or cert or key):
            return None
        if not ca or bool(cert) != bool(key):
            raise SettingsError(f"{name}_CA, {name}_CERT and {name}_KEY go together: name all three, or the CA alone")
        from pathlib import Path  # a process without TLS needs none to begin

        files = TLSFiles(Path(ca), Path(cert) if cert else None, Path(key) if key else None)
        for file in (files.ca, files.cert, files.key):
            if file is not None and not os.access(file, os.R_OK):
                raise SettingsError(f"{name}: cannot read {file}: check the path and its permissions")
        return files
