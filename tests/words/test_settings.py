"""Settings: every wrong variable is told in one sentence that names it, and nothing else is ever raised."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import SettingsError
from mesh.instance import Endpoint
from mesh.settings import Settings, TLSFiles

NAMES = (
    *("ETCD", "ETCD_USER", "ETCD_PASSWORD", "ETCD_PASSWORD_FILE", "ETCD_TLS_CA", "ETCD_TLS_CERT", "ETCD_TLS_KEY"),
    *("TLS_CA", "TLS_CERT", "TLS_KEY", "PREFIX", "LISTEN", "ADVERTISE", "INSTANCE_ID", "ZONE", "VERSION", "WEIGHT"),
    *("TTL", "DRAIN", "SETTLE", "REFLECTION", "METRICS", "NETWORKS", "LOG_LEVEL"),
)


def test_nothing_set_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()


def test_blank_is_the_same_as_not_set() -> None:
    assert Settings.from_env({f"MESH_{name}": "  " for name in NAMES if name != "ETCD_PASSWORD"}) == Settings()


def test_what_is_set_is_read() -> None:
    settings = Settings.from_env(
        {
            "MESH_ETCD": "a:1, b:2",
            "MESH_PREFIX": "/teams/blue/",
            "MESH_TTL": "5",
            "MESH_WEIGHT": "7",
            "MESH_REFLECTION": "Off",
            "MESH_NETWORKS": "10.0.0.0/8, fd00::/8 192.168.1.1",
            "MESH_LOG_LEVEL": "debug",
        }
    )
    assert settings.etcd == (Endpoint("a", 1), Endpoint("b", 2))
    assert (settings.prefix, settings.ttl, settings.weight, settings.reflection) == ("teams/blue", 5.0, 7, False)
    assert settings.networks == ("10.0.0.0/8", "fd00::/8", "192.168.1.1/32")
    assert settings.log_level == "DEBUG"


def test_what_the_program_says_wins_over_the_environment() -> None:
    assert Settings.from_env({"MESH_ZONE": "a"}, zone="b").zone == "b"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MESH_ETCD", "localhost", "'localhost' is no address: write host:port"),
        ("MESH_ETCD", "a:1,,b:2", "'' is no address"),
        ("MESH_ETCD", "http://a:2379", "is no address"),
        ("MESH_PREFIX", "/", "write names of"),
        ("MESH_PREFIX", "a//b", "write names of"),
        ("MESH_PREFIX", "a b", "write names of"),
        ("MESH_TTL", "soon", "write a number from 2 to 600"),
        ("MESH_TTL", "1", "write a number from 2 to 600"),
        ("MESH_TTL", "nan", "write a number from 2 to 600"),
        ("MESH_TTL", "inf", "write a number from 2 to 600"),
        ("MESH_DRAIN", "-1", "write a number from 0 to 3600"),
        ("MESH_SETTLE", "61", "write a number from 0 to 60"),
        ("MESH_WEIGHT", "0", "write a number from 1 to 1000"),
        ("MESH_WEIGHT", "1.5", "write a whole number from 1 to 1000"),
        ("MESH_REFLECTION", "maybe", "write true or false"),
        ("MESH_NETWORKS", "10.0.0.1/8", "'10.0.0.1/8' is no network: write e.g. 10.0.0.0/8"),
        ("MESH_NETWORKS", "10.0.0.0/8:x", "'10.0.0.0/8:x' is no network: write e.g. 10.0.0.0/8"),
        ("MESH_NETWORKS", "10.0.0.0/8:2-1", "'10.0.0.0/8:2-1' has no such ports"),
        ("MESH_NETWORKS", "10.0.0.0/8:70000", "'10.0.0.0/8:70000' has no such ports"),
        ("MESH_INSTANCE_ID", "a/b", "'a/b' is no instance id"),
        ("MESH_LOG_LEVEL", "loud", "write one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("MESH_TLS_CERT", "cert.pem", "name all three, or the CA alone"),
        ("MESH_ETCD_TLS_KEY", "key.pem", "name all three, or the CA alone"),
        ("MESH_TLS_CA", "/nowhere/ca.pem", "cannot read /nowhere/ca.pem"),
        ("MESH_ETCD_PASSWORD_FILE", "/nowhere/password", "cannot read /nowhere/password: No such file"),
    ],
)
def test_a_wrong_variable_is_named_with_what_to_write_instead(name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError) as told:
        Settings.from_env({name: value})
    text = str(told.value)
    assert text.startswith((name, name.rpartition("_")[0]))
    assert words in text
    assert "\n" not in text


@given(st.sampled_from(NAMES), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_no_value_raises_anything_else(name: str, value: str) -> None:
    if name.endswith("_FILE") and value.strip() in (".", "/"):
        value = "nowhere"
    with suppress(SettingsError):
        Settings.from_env({f"MESH_{name}": value})


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("")
    paths = {f"MESH_TLS_{name.upper()}": str(tmp_path / name) for name in ("ca", "cert", "key")}
    assert Settings.from_env(paths).tls == TLSFiles(tmp_path / "ca", tmp_path / "cert", tmp_path / "key")
    del paths["MESH_TLS_KEY"]
    with pytest.raises(SettingsError, match="go together"):
        Settings.from_env(paths)


def test_a_password_in_a_file_loses_its_line_end_only(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(" se cret \n")
    assert Settings.from_env({"MESH_ETCD_PASSWORD_FILE": str(tmp_path / "password")}).etcd_password == " se cret "
    (tmp_path / "password").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"^MESH_ETCD_PASSWORD_FILE: cannot read .*: it is not text in UTF-8$"):
        Settings.from_env({"MESH_ETCD_PASSWORD_FILE": str(tmp_path / "password")})


def test_settings_never_show_the_password() -> None:
    settings = Settings.from_env({"MESH_ETCD_PASSWORD": "hunter2hunter2", "MESH_ETCD_USER": "root"})
    assert "hunter2" not in f"{settings!r} {settings}"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().prefix = "x"  # type: ignore[misc]  # that it is refused is the test


def test_a_wrong_network_is_named_however_the_settings_are_made() -> None:
    with pytest.raises(SettingsError, match="'nonsense'"):
        Settings(networks=("10.0.0.0/8", "nonsense"))
