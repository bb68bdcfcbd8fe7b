"""A throwaway certificate authority for `mesh up --tls`: one CA, one certificate per role, all for this machine only.

The CA's key is never written: when anything is missing or about to expire, everything is made anew. It is no way to run
a fleet; there, a real authority writes the files that MESH_TLS_* name.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.settings import TLSFiles

ROLES = ("etcd", "instance", "control-plane", "edge", "client")

_LIFE = datetime.timedelta(days=30)
# Somebody may leave a stack running over a night, not over a month.
_SPARE = datetime.timedelta(days=2)
# Clocks of one machine agree with themselves; containers and VMs that share the folder may not.
_SKEW = datetime.timedelta(minutes=5)


def ensure(folder: Path, now: float) -> Mapping[str, TLSFiles]:
    """Return the files of every role, made anew if any is missing, foreign to the CA or about to expire."""
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if not _usable(folder, moment):
        _make(folder, moment)
    return {role: _files(folder, role) for role in ROLES}


def _files(folder: Path, role: str) -> TLSFiles:
    return TLSFiles(folder / "ca.pem", folder / f"{role}.pem", folder / f"{role}.key")


def _usable(folder: Path, now: datetime.datetime) -> bool:
    try:
        ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        for role in ROLES:
            leaf = x509.load_pem_x509_certificate((folder / f"{role}.pem").read_bytes())
            leaf.verify_directly_issued_by(ca)
            key = serialization.load_pem_private_key((folder / f"{role}.key").read_bytes(), None)
            if key.public_key() != leaf.public_key() or leaf.not_valid_after_utc < now + _SPARE:
                return False
            if leaf.not_valid_before_utc > now:
                return False
    except Exception:
        # Missing, truncated, of another authority, of another format: one answer to all, make it anew.
        return False
    return True


def _make(folder: Path, now: datetime.datetime) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _ca(ca_key, now)
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder / f"{role}.key", _pem(key), 0o600)
        _write(
            folder / f"{role}.pem", _leaf(role, key, ca, ca_key, now).public_bytes(serialization.Encoding.PEM), 0o644
        )
    _write(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM), 0o644)


def _ca(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    # No name constraints, well as they would fit: BoringSSL (gRPC, Envoy) refuses those for IP addresses.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "grpc-mesh throwaway authority")])
    return (
        _certificate(name, name, key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _leaf(
    role: str,
    key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.Certificate:
    """Return the certificate of one role. Everyone but the plain client is server on one hop and client on another."""
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role != "client":
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
    hosts = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mesh {role}")])
    return (
        _certificate(name, ca.subject, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write so that nobody ever sees half a file, nor a key that others may read."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    draft.replace(path)
