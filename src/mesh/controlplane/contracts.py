"""Contracts of a mesh: which one of a service counts, what it says of methods, all of them merged for the front."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from mesh.contract import descriptors, policies
from mesh.controlplane.annotations import problem_of
from mesh.errors import ContractError
from mesh.instance import Instance
from mesh.xds.snapshot import Method

_log = logging.getLogger("mesh.controlplane")

# In every merged set: the shapes of error details, and a service without HTTP annotations, because the transcoder
# wants at least one.
_ALWAYS = (error_details_pb2.DESCRIPTOR, status_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
PLACEHOLDER = "grpc.health.v1.Health"


@dataclass(frozen=True, slots=True)
class Merged:
    """All contracts in one descriptor set, and the services that are in it."""

    descriptors: bytes
    services: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def pick(instances: Sequence[Instance], known: Collection[str], votes: Mapping[str, int] | None = None) -> str:
    """Return the digest of the contract that counts, or "": that of most instances, then of the newest.

    votes: how many of the instances name each contract, if that was counted before.
    """
    votes = Counter(i.contract for i in instances) if votes is None else votes
    candidates = {digest: count for digest, count in votes.items() if digest in known}
    most = max(candidates.values(), default=0)
    best = {digest for digest, count in candidates.items() if count == most}
    if len(best) < 2:
        return best.pop() if best else ""
    return max((i.started, i.contract) for i in instances if i.contract in best)[1]


def methods(service: str, contract: bytes, override: bytes | None) -> tuple[Method, ...]:
    """Return the service's methods with their policies. An override that cannot be read is logged and left out."""
    pool = descriptors.pool_of(contract)
    try:
        message = policies.read_override(override) if override else None
        by_path = policies.policies_of(service, message, pool)
    except ContractError as e:
        _log.warning("the policy of %s is left out: %s", service, e, extra={"event.action": "policy-refused"})
        by_path = policies.policies_of(service, None, pool)
    return tuple(
        Method(
            path=shape.path,
            streaming=shape.client_streaming or shape.server_streaming,
            policy=by_path[shape.path],
            request_id=_request_id(pool, service, shape.name) if by_path[shape.path].has_request_id else 0,
        )
        for shape in descriptors.methods(service, pool)
    )


def merge(contracts: Sequence[tuple[str, bytes]]) -> Merged:
    """Merge the contracts of services, in the order given: of two files of the same name the first one counts.

    A service whose own file does not fit what the ones before brought is left out rather than spoil the whole set.
    """
    files: dict[str, bytes] = {}
    for file in _ALWAYS:
        _add_linked(file, files)
    taken: set[tuple[str, str]] = set()
    services, left_out = [], []
    for service, contract in contracts:
        extended = {f.name: f.SerializeToString() for f in descriptors.read(contract).file} | files
        problem = _problem(extended, service, taken)
        if not problem:
            files = extended
            services.append(service)
            continue
        left_out.append(service)
        _log.warning(
            "%s has no JSON: %s",
            service,
            problem,
            extra={"event.action": "contract-left-out", "service.name": service},
        )
    result = descriptor_pb2.FileDescriptorSet()
    for body in files.values():
        result.file.add().ParseFromString(body)
    return Merged(result.SerializeToString(deterministic=True), tuple(services) or (PLACEHOLDER,), tuple(left_out))


def pool_of(merged: Merged) -> DescriptorPool:
    """Return a pool with everything that was merged."""
    return descriptors.pool_of(merged.descriptors)


def _request_id(pool: DescriptorPool, service: str, method: str) -> int:
    request = pool.FindServiceByName(service).methods_by_name[method].input_type
    number: int = request.fields_by_name["request_id"].number
    return number


def _add_linked(file: FileDescriptor, files: dict[str, bytes]) -> None:
    if file.name in files:
        return
    for imported in file.dependencies:
        _add_linked(imported, files)
    files[file.name] = file.serialized_pb


def _problem(files: Mapping[str, bytes], service: str, taken: set[tuple[str, str]]) -> str:
    pool = DescriptorPool()
    try:
        for name, body in files.items():
            pool.AddSerializedFile(body)
            pool.FindFileByName(name)
        return problem_of(pool.FindServiceByName(service), taken)
    except (TypeError, KeyError):
        return "its contract does not fit those of the services before it"
