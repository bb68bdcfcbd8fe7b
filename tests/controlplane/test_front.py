"""envoy/front.yaml as it is shipped, and as it is changed for one place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from mesh.controlplane import front
from mesh.errors import SettingsError
from mesh.instance import Endpoint
from mesh.settings import TLSFiles
from mesh.xds.routes import CONTROL_PLANE
from mesh.xds.routes import FRONT as ROUTES
from mesh.xds.scripts import REPEATS, STRICT
from mesh.xds.transcoder import TRANSCODER
from support.certificates import Authority
from support.envoy import COMMAND, FRONT

PLACES = {
    "edge": Endpoint("0.0.0.0", 8443),
    "control_plane": Endpoint("10.0.0.9", 18001),
    "admin": Endpoint("127.0.0.1", 9999),
}


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "--mode", "validate", "-c", file], capture_output=True, text=True, timeout=60)


def test_shipped_file_is_valid_as_it_stands() -> None:
    assert validate(FRONT).returncode == 0


def test_changed_file_is_valid_with_and_without_tls(tmp_path: Path) -> None:
    tls = Authority(tmp_path / "authority").issue("edge")
    front.write_secrets(tmp_path / "secrets", tls)
    for name, files in (("plain", None), ("tls", tls)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(front.render(FRONT.read_text(), **PLACES, tls=files, secrets=tmp_path / "secrets"))
        done = validate(file)
        assert done.returncode == 0, done.stderr


def test_addresses_are_put_where_they_belong() -> None:
    config = yaml.safe_load(front.render(FRONT.read_text(), **PLACES, node_id="front-7"))

    assert config["node"]["id"] == "front-7"
    assert config["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 9999}
    [listener] = config["static_resources"]["listeners"]
    assert listener["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8443}
    assert "18001" in str(config["static_resources"]["clusters"])


def test_tls_without_a_key_or_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="key"):
        front.secrets(TLSFiles(tmp_path / "ca.pem"))
    with pytest.raises(SettingsError, match="secrets"):
        front.render(FRONT.read_text(), **PLACES, tls=TLSFiles(tmp_path / "ca.pem"))


def test_file_and_control_plane_agree_on_names() -> None:
    config = yaml.safe_load(FRONT.read_text())
    [listener] = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]

    assert manager["rds"]["route_config_name"] == ROUTES
    assert [c["name"] for c in config["static_resources"]["clusters"]] == [CONTROL_PLANE]
    discovered = [f["name"] for f in manager["http_filters"] if "config_discovery" in f]
    assert discovered == [STRICT, TRANSCODER, REPEATS]


def test_admin_is_on_loopback_and_callers_are_not_trusted() -> None:
    config = yaml.safe_load(FRONT.read_text())
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]

    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    assert manager["use_remote_address"] is True
    assert manager["internal_address_config"] == {"cidr_ranges": []}
    assert manager["path_with_escaped_slashes_action"] == "REJECT_REQUEST"
    assert manager["common_http_protocol_options"]["headers_with_underscores_action"] == "REJECT_REQUEST"
