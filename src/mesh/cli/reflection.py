"""What a running server serves, asked by gRPC server reflection: the names of its services, and their contract.

Version 1 and v1alpha of the protocol differ in their names only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from mesh.contract.descriptors import is_plumbing

_PATHS = tuple(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha"))
_PATIENCE = 5.0


class NoReflection(Exception):
    """The server does not answer reflection."""


async def services(channel: grpc.aio.Channel) -> list[str]:
    """Return the services that a server offers, without health and reflection. Raises NoReflection."""
    [answer] = await _ask(channel, [ServerReflectionRequest(list_services="*")])
    return sorted(s.name for s in answer.list_services_response.service if not is_plumbing(s.name))


async def contract(channel: grpc.aio.Channel, names: Iterable[str]) -> bytes:
    """Return a FileDescriptorSet of services and all that they import, imports first; b"" where a part is missing."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    try:
        answers = await _ask(channel, [ServerReflectionRequest(file_containing_symbol=name) for name in sorted(names)])
        roots = [file for answer in answers for file in _files(answer)]
        while roots:
            files |= {file.name: file for file in roots}
            missing = sorted({name for file in roots for name in file.dependency} - files.keys())
            answers = await _ask(channel, [ServerReflectionRequest(file_by_filename=name) for name in missing])
            roots = [file for answer in answers for file in _files(answer) if file.name not in files]
    except (NoReflection, DecodeError):
        return b""
    return _in_order(files)


async def _ask(channel: grpc.aio.Channel, requests: list[ServerReflectionRequest]) -> list[ServerReflectionResponse]:
    if not requests:
        return []
    error: grpc.aio.AioRpcError | None = None
    for path in _PATHS:
        stream = channel.stream_stream(
            path,
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )

        async def ask() -> AsyncIterator[ServerReflectionRequest]:
            for request in requests:
                yield request

        try:
            return [answer async for answer in stream(ask(), timeout=_PATIENCE)]
        except grpc.aio.AioRpcError as e:
            # UNIMPLEMENTED, or INTERNAL where grpc.aio still writes while that comes in: ask in the other version.
            error = e
    raise NoReflection(error.details() if error else "") from error


def _files(answer: ServerReflectionResponse) -> list[descriptor_pb2.FileDescriptorProto]:
    contents = answer.file_descriptor_response.file_descriptor_proto
    return [descriptor_pb2.FileDescriptorProto.FromString(content) for content in contents]


def _in_order(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> bytes:
    """Imports before importers, otherwise by name, so that equal contracts are equal bytes."""
    ordered: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(name: str) -> bool:
        if name in ordered:
            return True
        file = files.get(name)
        if file is None or not all(add(needed) for needed in file.dependency):
            return False
        ordered[name] = file
        return True

    if not all(add(name) for name in sorted(files)):
        return b""
    return descriptor_pb2.FileDescriptorSet(file=ordered.values()).SerializeToString(deterministic=True)
