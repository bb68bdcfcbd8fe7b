"""The form that an instance takes in the store: etcd's official gRPC naming format, so that stock Go clients
(go.etcd.io/etcd/client/v3/naming) find ours and we find theirs.

    mesh/services/<service>/<instance id>  →  {"Op":0,"Addr":"host:port","Metadata":{…}}

Only `Addr` must be there. `Metadata` may be anything in that format (Go: interface{}): what others write is theirs and
not looked at, unless it is an object, as ours is; then what a record says of itself is checked before anybody sees it.
The format has no number for its version: unknown fields are passed over, an unknown state is refused.
"""

from __future__ import annotations

import json
from sys import intern
from typing import Any

from mesh.errors import InvalidName, RecordError
from mesh.instance import Endpoint, Instance, State, check_instance_id, check_service_name

# A record is a few hundred bytes. Far larger ones are somebody's mistake and not worth parsing.
_LARGEST = 64 * 1024
_HEAVIEST = 1000


def services_prefix(prefix: str) -> str:
    """Return where all instances of all services are."""
    return f"{prefix}/services/"


def service_prefix(prefix: str, service: str) -> str:
    """Return where the instances of one service are."""
    return f"{prefix}/services/{service}/"


def instance_key(prefix: str, instance: Instance) -> str:
    """Return where one instance is."""
    return f"{prefix}/services/{instance.service}/{instance.id}"


def contract_key(prefix: str, digest: str) -> str:
    """Return where a contract's descriptors are, by their SHA-256."""
    return f"{prefix}/contracts/{digest}"


def policies_prefix(prefix: str) -> str:
    """Return where the operators' policies of all services are."""
    return f"{prefix}/policies/"


def policy_key(prefix: str, service: str) -> str:
    """Return where an operator's policy of one service is: a grpcmesh.v1.Policy as protobuf's JSON."""
    return f"{prefix}/policies/{service}"


def probes_prefix(prefix: str, service: str) -> str:
    """Return where clients of a service keep whose turn it is to probe an instance that was left alone."""
    return f"{prefix}/probes/{service}/"


def encode(instance: Instance) -> bytes:
    """Write an instance as a record."""
    metadata = {
        "id": instance.id,
        "zone": instance.zone,
        "version": instance.version,
        "weight": instance.weight,
        "state": str(instance.state),
        "started": instance.started,
        "contract": instance.contract,
    }
    record = {"Op": 0, "Addr": str(instance.endpoint), "Metadata": metadata}
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()


def decode(key: str, value: bytes, prefix: str) -> Instance:
    """Read a record. Its service and id are those of the key. Raises RecordError on whatever is wrong with it."""
    try:
        service, number = _names(key, prefix)
        record = _object(value)
        metadata = record.get("Metadata")
        if not isinstance(metadata, dict):  # foreign records carry anything here, or nothing
            metadata = {}
        # Ten thousand instances have few zones, versions and contracts between them: each text is kept once.
        return Instance(
            service=intern(service),
            id=number,
            endpoint=Endpoint.parse(_text(record, "Addr")),
            zone=intern(_text(metadata, "zone")),
            version=intern(_text(metadata, "version")),
            weight=_weight(metadata),
            state=_state(metadata),
            started=_number(metadata, "started"),
            contract=intern(_text(metadata, "contract")),
        )
    except InvalidName as e:
        raise RecordError(str(e)) from e


def _names(key: str, prefix: str) -> tuple[str, str]:
    root = services_prefix(prefix)
    service, slash, number = key.removeprefix(root).partition("/")
    if not key.startswith(root) or not slash:
        raise RecordError(f"{key[:80]!r} is no instance's key: it must be {root}<service>/<instance id>")
    return check_service_name(service), check_instance_id(number)


def _object(value: bytes) -> dict[str, Any]:
    if len(value) > _LARGEST:
        raise RecordError(f"{len(value)} bytes are too many for a record")
    try:
        record = json.loads(value)
    except (ValueError, RecursionError) as e:
        raise RecordError("the value is no JSON") from e
    if not isinstance(record, dict):
        raise RecordError("the value is no JSON object")
    return record


def _text(fields: dict[str, Any], name: str) -> str:
    text = fields.get(name, "")
    if not isinstance(text, str) or len(text) > 256 or not text.isprintable():
        raise RecordError(f"{name} is no short text")
    return text


def _number(fields: dict[str, Any], name: str) -> float:
    number = fields.get(name, 0.0)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e12:
        raise RecordError(f"{name} is no time")
    return float(number)


def _weight(fields: dict[str, Any]) -> int:
    weight = fields.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= _HEAVIEST:
        raise RecordError(f"weight is no whole number from 1 to {_HEAVIEST}")
    return weight


def _state(fields: dict[str, Any]) -> State:
    text = _text(fields, "state") or State.READY
    try:
        return State(text)
    except ValueError as e:
        raise RecordError(f"state {text!r} is none of {', '.join(State)}") from e
