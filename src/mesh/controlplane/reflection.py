"""Reflection for the whole mesh: the front sends it here, because no instance knows the services of the others."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from mesh.controlplane.contracts import PLACEHOLDER, Merged, pool_of
from mesh.controlplane.plane import Plane

# The same messages under two names; the newer one is asked for first by grpcurl.
SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def add_reflection(plane: Plane, server: grpc.aio.Server) -> None:
    """Answer reflection out of the contracts that the plane knows at that moment."""

    async def answer(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for response in _servicer(plane.catalog.merged()).ServerReflectionInfo(requests, context):
            yield response

    for name in SERVICES:
        method = grpc.stream_stream_rpc_method_handler(
            answer,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        server.add_generic_rpc_handlers((handler,))


@functools.lru_cache(maxsize=2)
def _servicer(merged: Merged) -> Any:
    return ReflectionServicer({*merged.services, *SERVICES} - {PLACEHOLDER}, pool_of(merged))
