"""Health and reflection: what tools and balancers ask of a server."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from mesh.server import refusal_of
from support.echo import SERVICE
from support.serving import QUICK, echo_server, error_of, plain_channel

Status = health_pb2.HealthCheckResponse


def _ask(channel: grpc.aio.Channel, version: str, **question: str) -> Any:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return call(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=5)


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_lists_and_describes_what_is_served(version: str) -> None:
    async def story() -> None:
        async with echo_server() as server, plain_channel(server) as channel:
            [listed] = [r async for r in _ask(channel, version, list_services="")]
            names = {s.name for s in listed.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names
            [found] = [r async for r in _ask(channel, version, file_containing_symbol=SERVICE)]
            files = [
                descriptor_pb2.FileDescriptorProto.FromString(f)
                for f in found.file_descriptor_response.file_descriptor_proto
            ]
            assert any(file.name == "echo/v1/echo.proto" for file in files)

    asyncio.run(story())


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_can_be_switched_off(version: str) -> None:
    async def story() -> None:
        settings = dataclasses.replace(QUICK, reflection=False)
        async with echo_server(settings) as server, plain_channel(server) as channel:
            assert (await error_of(_ask(channel, version, list_services=""))).code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(story())


def test_health_is_told_for_each_service_and_for_the_server_as_a_whole() -> None:
    async def story() -> None:
        async with echo_server() as server, plain_channel(server) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", SERVICE):
                assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == Status.SERVING
            error = await error_of(health.Check(health_pb2.HealthCheckRequest(service="users.v1.Nobody")))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            refusal = refusal_of(error)
            assert refusal is not None
            assert refusal.reason == "UNKNOWN_SERVICE"

    asyncio.run(story())


def test_a_health_watch_hears_of_every_lasting_change() -> None:
    async def story() -> None:
        async with echo_server() as server, plain_channel(server) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            unknown = health.Watch(health_pb2.HealthCheckRequest(service="users.v1.Nobody"))
            assert (await watch.read()).status == Status.SERVING
            assert (await unknown.read()).status == Status.SERVICE_UNKNOWN
            await server.pause()
            assert (await watch.read()).status == Status.NOT_SERVING
            await server.resume()
            assert (await watch.read()).status == Status.SERVING
            await server.leave()
            assert await watch.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(story())


def test_a_watcher_that_does_not_read_keeps_nobody_from_changing_health() -> None:
    async def story() -> None:
        async with echo_server() as server, plain_channel(server) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watches = [health.Watch(health_pb2.HealthCheckRequest(service=SERVICE)) for _ in range(20)]
            await watches[0].read()
            async with asyncio.timeout(5):
                for _ in range(50):
                    await server.pause()
                    await server.resume()
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == Status.SERVING
            for watch in watches:
                watch.cancel()

    asyncio.run(story())
