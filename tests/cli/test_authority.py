"""The throwaway authority of `mesh up --tls`."""

from __future__ import annotations

import ipaddress
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.cli.authority import ROLES, ensure

NOW = time.time()
DAY = 86_400.0


def read(folder: Path, role: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{role}.pem").read_bytes())


def test_every_role_has_a_certificate_of_one_authority_for_loopback(tmp_path: Path) -> None:
    ensure(tmp_path, NOW)
    ca = read(tmp_path, "ca")
    for role in ROLES:
        leaf = read(tmp_path, role)
        leaf.verify_directly_issued_by(ca)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["localhost"]
        assert set(names.get_values_for_type(x509.IPAddress)) == {
            ipaddress.ip_address("127.0.0.1"),
            ipaddress.ip_address("::1"),
        }
        key = leaf.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"


def test_the_client_may_not_pose_as_a_server(tmp_path: Path) -> None:
    ensure(tmp_path, NOW)
    purposes = read(tmp_path, "client").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [p._name for p in purposes] == ["clientAuth"]


def test_keys_are_for_their_owner_alone_and_the_authoritys_is_not_kept(tmp_path: Path) -> None:
    files = ensure(tmp_path / "tls", NOW)
    for role in ROLES:
        key = files[role].key
        assert key is not None
        assert key.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "tls" / "ca.key").exists()
    assert (tmp_path / "tls").stat().st_mode & 0o077 == 0


def test_files_load_in_openssl(tmp_path: Path) -> None:
    files = ensure(tmp_path, NOW)["edge"]
    assert files.cert is not None
    assert files.key is not None
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.cert, files.key)


def test_what_is_good_is_kept(tmp_path: Path) -> None:
    ensure(tmp_path, NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ensure(tmp_path, NOW + 20 * DAY)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("days", [29, 31, 400, -2])
def test_what_expires_soon_or_is_of_the_future_is_made_anew(tmp_path: Path, days: int) -> None:
    ensure(tmp_path, NOW)
    before = read(tmp_path, "edge").serial_number
    ensure(tmp_path, NOW + days * DAY)
    assert read(tmp_path, "edge").serial_number != before


@pytest.mark.parametrize("file", ["ca.pem", "edge.pem", "edge.key"])
def test_what_is_missing_or_broken_is_made_anew(tmp_path: Path, file: str) -> None:
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])):
        ensure(tmp_path, NOW)
        damage(tmp_path / file)
        ensure(tmp_path, NOW)
        read(tmp_path, "edge").verify_directly_issued_by(read(tmp_path, "ca"))


def test_a_certificate_of_another_authority_is_replaced(tmp_path: Path) -> None:
    ensure(tmp_path / "ours", NOW)
    ensure(tmp_path / "other", NOW)
    for name in ("edge.pem", "edge.key"):
        (tmp_path / "ours" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    ensure(tmp_path / "ours", NOW)
    read(tmp_path / "ours", "edge").verify_directly_issued_by(read(tmp_path / "ours", "ca"))
