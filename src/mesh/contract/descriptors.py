"""Descriptor sets: the contract of a process as bytes, the same for the same contract on every machine.

An instance puts these bytes into the store under their digest; the control plane reads them there, without any
`.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from mesh.errors import ContractError

# Services that every server carries beside its own; they are no contract of the team's.
PLUMBING = ("grpc.health.", "grpc.reflection.", "grpc.channelz.", "grpc.admin.")


class MethodShape(NamedTuple):
    """One method: its path on the wire ("/users.v1.UserService/GetUser") and which sides of it are streams."""

    path: str
    name: str
    client_streaming: bool
    server_streaming: bool


def is_plumbing(service: str) -> bool:
    """Return whether a service belongs to gRPC itself (health, reflection) rather than to a team."""
    return service.startswith(PLUMBING)


def find_service(service: str, pool: DescriptorPool | None = None) -> ServiceDescriptor | None:
    """Return the service's descriptor, or None where its stubs are not imported."""
    try:
        return (pool or descriptor_pool.Default()).FindServiceByName(service)
    except KeyError:
        return None


def methods(service: str, pool: DescriptorPool | None = None) -> tuple[MethodShape, ...]:
    """Return the service's methods in the order of the contract; empty where its stubs are not imported."""
    found = find_service(service, pool)
    if found is None:
        return ()
    return tuple(
        MethodShape(f"/{service}/{m.name}", m.name, m.client_streaming, m.server_streaming) for m in found.methods
    )


def descriptor_set(services: Iterable[str], pool: DescriptorPool | None = None) -> bytes:
    """Return a serialized FileDescriptorSet of the services' files and all that they import, imports first.

    Services whose stubs are not imported, and gRPC's own, are left out; the result is empty if none remains. Options
    are kept, those of unknown extensions included. The order depends on the contract alone.
    """
    files: dict[str, FileDescriptor] = {}
    for service in sorted(set(services)):
        found = find_service(service, pool)
        if found is not None and not is_plumbing(service):
            _add_with_imports(found.file, files)
    result = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        result.file.add().ParseFromString(file.serialized_pb)
    return result.SerializeToString(deterministic=True)


def _add_with_imports(file: FileDescriptor, files: dict[str, FileDescriptor]) -> None:
    if file.name in files:
        return
    for imported in file.dependencies:
        _add_with_imports(imported, files)
    files[file.name] = file


def digest(contract: bytes) -> str:
    """Return the SHA-256 of a descriptor set in hex: its name in the store."""
    import hashlib  # callers name no contract

    return hashlib.sha256(contract).hexdigest()


def read(contract: bytes) -> descriptor_pb2.FileDescriptorSet:
    """Parse a descriptor set; raise ContractError if the bytes are none."""
    try:
        return descriptor_pb2.FileDescriptorSet.FromString(contract)
    except DecodeError as e:
        raise ContractError("these bytes are no FileDescriptorSet") from e


def pool_of(contract: bytes) -> DescriptorPool:
    """Return a pool of its own with a set's files; raise ContractError if they do not stand by themselves."""
    pool = DescriptorPool()
    for file in read(contract).file:
        try:
            pool.Add(file)
            pool.FindFileByName(file.name)
        except (TypeError, KeyError) as e:
            raise ContractError(f"the contract's file {file.name!r} does not fit the files before it") from e
    return pool


def services_of(contract: bytes) -> tuple[str, ...]:
    """Return the full names of the services that a descriptor set defines, sorted, gRPC's own left out."""
    return tuple(
        sorted(
            name
            for file in read(contract).file
            for service in file.service
            if not is_plumbing(name := f"{file.package}.{service.name}".lstrip("."))
        )
    )
