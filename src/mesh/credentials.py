"""TLS for every connection of the mesh: PEM files become grpc credentials, with a sentence for what is wrong with them.

A server reads its files again when they change and gives new connections the new certificate; those already open go
on. A client's credentials are fixed for its connection: it compares `fingerprint` and opens new ones when it changed.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from mesh.clock import Clock
from mesh.errors import SettingsError
from mesh.settings import TLSFiles
from mesh.wallclock import CLOCK

_log = logging.getLogger("mesh.credentials")


@dataclass(frozen=True, slots=True)
class _Material:
    """What the files hold."""

    ca: bytes
    cert: bytes | None
    key: bytes | None


def channel_credentials(tls: TLSFiles) -> grpc.ChannelCredentials:
    """Build what a client connects with: it trusts the authority and, where it has one, shows its own certificate.

    Raises SettingsError if the files cannot be used.
    """
    material = _load(tls, CLOCK)
    return grpc.ssl_channel_credentials(material.ca, material.key, material.cert)


def server_credentials(tls: TLSFiles, require_client: bool = True, *, clock: Clock = CLOCK) -> grpc.ServerCredentials:
    """Build what a server listens with. Callers without a certificate of the same authority are refused.

    require_client: False also admits callers that show no certificate.

    The files are read again, when they changed, as each connection is opened. Files that cannot be used (half written,
    a key that does not fit, expired) are logged and the certificate before them stays. Raises SettingsError if the
    first ones cannot be used.
    """
    if tls.cert is None or tls.key is None:
        raise SettingsError("a server needs a certificate and its key: set MESH_TLS_CERT and MESH_TLS_KEY too")
    renewal = _Renewal(tls, require_client, clock)
    return grpc.dynamic_ssl_server_credentials(
        renewal.first,
        renewal,  # type: ignore[arg-type]  # None, "unchanged", is in grpc's documentation and not in its stubs
        require_client_authentication=require_client,
    )


def fingerprint(tls: TLSFiles) -> str:
    """Return a text that changes when one of the files does. Cheap: sizes, times and inodes, not contents."""
    return ";".join(_mark(file) for file in (tls.ca, tls.cert, tls.key))


class _Renewal:
    """Asked by grpc at each handshake, on its thread: the new configuration if there is one, else None."""

    def __init__(self, tls: TLSFiles, require_client: bool, clock: Clock) -> None:
        self._tls = tls
        self._require_client = require_client
        self._clock = clock
        self._seen = fingerprint(tls)
        self.first = self._configuration()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        seen = fingerprint(self._tls)
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            configuration = self._configuration()
        except SettingsError as e:
            _log.warning("kept the certificate before: %s", e, extra={"event.action": "certificate-refused"})
            return None
        _log.info("took the new certificate %s", self._tls.cert, extra={"event.action": "certificate-renewed"})
        return configuration

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        material = _load(self._tls, self._clock)
        assert material.key is not None
        assert material.cert is not None
        return grpc.ssl_server_certificate_configuration([(material.key, material.cert)], material.ca)


def _mark(file: Path | None) -> str:
    if file is None:
        return "-"
    try:
        stat = file.stat()
    except OSError as e:
        return f"errno {e.errno}"
    return f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"


def _load(tls: TLSFiles, clock: Clock) -> _Material:
    """Read the files and check that they fit each other: a mistake is told here and not by failing handshakes."""
    seen = fingerprint(tls)
    material = _Material(_read(tls.ca), _read(tls.cert) if tls.cert else None, _read(tls.key) if tls.key else None)
    _check(lambda c: c.load_verify_locations(cadata=material.ca.decode("ascii")), f"{tls.ca} holds no PEM certificate")
    if tls.cert is not None and tls.key is not None:
        cert, key = tls.cert, tls.key
        _check(lambda c: c.load_cert_chain(cert, key, password=_no_password), f"{cert} and {key} do not go together")
        _check_dates(cert, clock.time())
    if fingerprint(tls) != seen:
        raise SettingsError(f"{tls.cert or tls.ca} is being replaced at this moment: try again")
    return material


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as e:
        raise SettingsError(f"cannot read {file}: {e.strerror or e}; check the path and its permissions") from e


def _no_password() -> str:
    raise SettingsError("the private key is encrypted: give one without a pass phrase")


def _check(load: Callable[[ssl.SSLContext], None], complaint: str) -> None:
    try:
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    except (ssl.SSLError, ValueError) as e:
        reason = getattr(e, "reason", None) or "not PEM"
        raise SettingsError(f"{complaint} ({str(reason).lower().replace('_', ' ')})") from e


def _check_dates(file: Path, now: float) -> None:
    pem = _read(file).decode("ascii")
    begin, end = pem.index(_BEGIN), pem.index(_END) + len(_END)
    not_before, not_after = _validity(ssl.PEM_cert_to_DER_cert(pem[begin:end]))
    if now > not_after.timestamp():
        raise SettingsError(f"{file} expired on {not_after:%Y-%m-%d %H:%M} UTC: renew it")
    if now < not_before.timestamp():
        raise SettingsError(f"{file} is not valid before {not_before:%Y-%m-%d %H:%M} UTC: check this machine's clock")


_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_VERSION_TAG, _UTC_TIME = 0xA0, 0x17


def _validity(der: bytes) -> tuple[datetime, datetime]:
    """Return a certificate's dates, by hand (RFC 5280, 4.1): the standard library tells those of authorities only."""
    _, certificate, _ = _element(der)
    _, rest, _ = _element(certificate)
    tag, _, after = _element(rest)
    rest = after if tag == _VERSION_TAG else rest
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, rest = _element(rest)
    _, dates, _ = _element(rest)
    tag, first, rest = _element(dates)
    tag_after, second, _ = _element(rest)
    return _time(tag, first), _time(tag_after, second)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Split DER into the first element's tag, its content, and what comes after it."""
    length, start = der[1], 2
    if length & 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(der[2:start])
    return der[0], der[start : start + length], der[start + length :]


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year, from 1950 on
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
