"""envoy/front.yaml for one place: the file as it is shipped, with its addresses, node id and TLS changed.

With TLS, Envoy reads its certificates through files of secrets (SDS), one secret in each, and takes new ones when they
are *moved* into place: replace certificate files by renaming, never by writing into them.

    write_secrets(Path("secrets"), files)
    Path("front.yaml").write_text(render(text, edge=…, …, tls=files, secrets=Path("secrets")))

Needs pyyaml (the extra `local`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mesh.errors import SettingsError
from mesh.instance import Endpoint
from mesh.settings import TLSFiles
from mesh.xds.clusters import AUTHORITY, IDENTITY
from mesh.xds.endpoints import is_numeric

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


def render(
    front: str,
    *,
    edge: Endpoint,
    control_plane: Endpoint,
    admin: Endpoint,
    tls: TLSFiles | None = None,
    secrets: Path | None = None,
    node_id: str = "front",
) -> str:
    """Return the text of front.yaml changed for these addresses.

    tls: Envoy's own certificate, shown to callers, instances and the control plane; all of them must show one of the
    same authority. Needs `secrets`, the folder that `write_secrets` fills.
    """
    config = _load(front)
    config["node"]["id"] = node_id
    _address(config["admin"], admin)
    [listener] = config["static_resources"]["listeners"]
    _address(listener, edge)
    [cluster] = config["static_resources"]["clusters"]
    [group] = cluster["load_assignment"]["endpoints"]
    [member] = group["lb_endpoints"]
    _address(member["endpoint"], control_plane)
    if tls is not None:
        if secrets is None:
            raise SettingsError("TLS at the front needs a folder of secrets beside front.yaml")
        config["node"]["metadata"] = {"secrets": str(secrets)}
        [chain] = listener["filter_chains"]
        chain["transport_socket"] = _edge(secrets)
        member["endpoint"]["hostname"] = control_plane.host
        cluster["transport_socket"] = _upstream(secrets, named=not is_numeric(control_plane))
    return _dump(config)


def write_secrets(folder: Path, tls: TLSFiles) -> None:
    """Write the files of secrets, which say where the certificates lie. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in secrets(tls).items():
        (folder / f"{name}.yaml").write_text(text)


def secrets(tls: TLSFiles) -> dict[str, str]:
    """Return the text of each file of secrets, by the secret's name: Envoy takes one from a file, no more."""
    if tls.cert is None or tls.key is None:
        raise SettingsError("the front needs a certificate and its key")
    kind = _TLS + "Secret"
    identity: dict[str, Any] = {
        "@type": kind,
        "name": IDENTITY,
        "tls_certificate": {
            "certificate_chain": {"filename": str(tls.cert)},
            "private_key": {"filename": str(tls.key)},
        },
    }
    trusted = {"trusted_ca": {"filename": str(tls.ca)}}
    authority: dict[str, Any] = {"@type": kind, "name": AUTHORITY, "validation_context": trusted}
    return {name: _dump({"resources": [secret]}) for name, secret in ((IDENTITY, identity), (AUTHORITY, authority))}


def _edge(folder: Path) -> dict[str, Any]:
    context = {
        "@type": _TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _common(folder, ["h2", "http/1.1"]),
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _upstream(folder: Path, *, named: bool) -> dict[str, Any]:
    """TLS to the control plane. Envoy can hold a DNS name against the certificate, an IP address it cannot."""
    context = {
        "@type": _TLS + "UpstreamTlsContext",
        "auto_host_sni": named,
        "auto_sni_san_validation": named,
        "common_tls_context": _common(folder, ["h2"]),
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _common(folder: Path, protocols: list[str]) -> dict[str, Any]:
    def secret(name: str) -> dict[str, Any]:
        source = {"path_config_source": {"path": str(folder / f"{name}.yaml")}, "resource_api_version": "V3"}
        return {"name": name, "sds_config": source}

    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [secret(IDENTITY)],
        "validation_context_sds_secret_config": secret(AUTHORITY),
        "alpn_protocols": protocols,
    }


def _address(owner: dict[str, Any], endpoint: Endpoint) -> None:
    owner["address"]["socket_address"] = {"address": endpoint.host.strip("[]"), "port_value": endpoint.port}


def _load(text: str) -> dict[str, Any]:
    yaml = _yaml()
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def _dump(value: dict[str, Any]) -> str:
    text: str = _yaml().safe_dump(value, sort_keys=False, width=120)
    return text


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as e:
        raise SettingsError("reading front.yaml needs pyyaml: pip install 'grpc-mesh[local]'") from e
    return yaml
