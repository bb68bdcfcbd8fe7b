"""The control plane over a real gRPC stream, fed by hand."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from mesh.controlplane import ControlPlane
from mesh.errors import SettingsError
from mesh.instance import State, View
from mesh.xds.resources import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES
from support.ads import Ads
from support.counted import counted
from support.views import Views, instance
from users.v1 import users_pb2_grpc  # noqa: F401  its descriptors are the contract

S = "users.v1.UserService"

Story = Callable[[], Awaitable[None]]


def story(test: Story) -> Callable[[], None]:
    """Run an asynchronous test."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]  # every story is a coroutine

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look at the asynchronous one
    return run


@asynccontextmanager
async def mesh_of(*ports: int) -> AsyncIterator[tuple[Views, ControlPlane]]:
    views = Views()
    contract = views.add_contract(S)
    views.set(S, *(instance(S, n, port, contract=contract) for n, port in enumerate(ports)))
    async with ControlPlane(views) as plane:
        yield views, plane


def ports(response: discovery_pb2.DiscoveryResponse) -> list[int]:
    assignment = ClusterLoadAssignment.FromString(response.resources[0].value)
    return [e.endpoint.address.socket_address.port_value for x in assignment.endpoints for e in x.lb_endpoints]


@story
async def test_stream_without_a_node_id_is_closed_as_invalid() -> None:
    async with mesh_of(1001) as (_, plane), Ads(plane.endpoint, node="") as ads:
        await ads.ask(CLUSTER)
        code, details = await ads.code()

    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "node.id" in details


@story
async def test_thousands_of_names_are_closed_as_invalid() -> None:
    async with mesh_of(1001) as (_, plane), Ads(plane.endpoint) as ads:
        await ads.ask(ENDPOINTS, *map(str, range(20_000)))
        code, _ = await ads.code()

    assert code == grpc.StatusCode.INVALID_ARGUMENT


@story
async def test_delta_is_unimplemented() -> None:
    async with mesh_of(1001) as (_, plane), grpc.aio.insecure_channel(str(plane.endpoint)) as channel:
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()

        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED


@story
async def test_unknown_type_is_ignored_and_counted() -> None:
    before = counted("mesh_xds_requests_refused_total", reason="unknown_type")
    async with mesh_of(1001) as (_, plane), Ads(plane.endpoint) as ads:
        await ads.ask("type.googleapis.com/no.such.Type")
        await ads.ask(CLUSTER)

        assert (await ads.take()).type_url == CLUSTER
    assert counted("mesh_xds_requests_refused_total", reason="unknown_type") == before + 1


@story
async def test_nothing_is_sent_before_the_registry_was_read() -> None:
    views = Views(silent=True)
    async with ControlPlane(views) as plane:
        async with Ads(plane.endpoint) as ads:
            await ads.ask(CLUSTER)
            await ads.silent()
        async with Ads(plane.endpoint) as ads:
            await ads.ask(CLUSTER)
            views.silent = False
            views.set(S, instance(S, 1, 1001))

            assert len((await ads.take()).resources) == 1


@story
async def test_unknown_views_are_not_taken_for_empty_ones() -> None:
    views = Views({S: View(S)})
    async with ControlPlane(views) as plane, Ads(plane.endpoint) as ads:
        await ads.ask(CLUSTER)
        await ads.silent()


@pytest.mark.alone
@story
async def test_change_is_sent_at_once_and_those_after_it_together() -> None:
    async with mesh_of(1001) as (views, plane), Ads(plane.endpoint) as ads:
        await ads.ask(ENDPOINTS, S)
        first = await ads.take()
        await ads.answer(first, S)
        await asyncio.sleep(0.1)
        begin = time.monotonic()
        for count in range(2, 30):
            views.set(S, *(instance(S, n, 1001 + n) for n in range(count)))
        second = await ads.take()
        at_once = time.monotonic() - begin
        await ads.answer(second, S)
        third = await ads.take()

    assert at_once < 0.05
    assert len(ports(second)) == 2
    assert len(ports(third)) == 29


@story
async def test_endpoints_empty_only_after_a_goodbye() -> None:
    async with mesh_of(1001, 1002) as (views, plane):
        views.set(S)
        async with Ads(plane.endpoint) as ads:
            await ads.ask(ENDPOINTS, S)
            response = await ads.take()
            assert ports(response) == [1001, 1002]
            await ads.answer(response, S)
            views.set(S, instance(S, 0, 1001), instance(S, 1, 1002))
            views.set(S, instance(S, 0, 1001, state=State.DRAINING), instance(S, 1, 1002, state=State.DRAINING))

            assert ports(await ads.take()) == []


@story
async def test_service_that_vanished_is_still_routed() -> None:
    async with mesh_of(1001) as (views, plane):
        views.views = {}
        views.tell()
        async with Ads(plane.endpoint) as ads:
            await ads.ask(CLUSTER)

            assert len((await ads.take()).resources) == 1


@story
async def test_refusal_is_counted_and_not_answered_with_the_same_again() -> None:
    before = counted("mesh_xds_nacks_total", type="CDS")
    async with mesh_of(1001) as (_, plane), Ads(plane.endpoint) as ads:
        await ads.ask(CLUSTER)
        await ads.answer(await ads.take(), error="I will not have it")
        await ads.silent()

    assert counted("mesh_xds_nacks_total", type="CDS") == before + 1


@story
async def test_replicas_send_the_same_versions_and_a_client_may_change_between_them() -> None:
    async with mesh_of(1001, 1002) as (_, one), mesh_of(1001, 1002) as (_, other):
        kinds = {CLUSTER: (), ENDPOINTS: (S,), ROUTES: ("front",), EXTENSION: ("transcoder", "strict", "repeats")}
        async with Ads(one.endpoint) as ads:
            versions = {}
            for kind, names in kinds.items():
                await ads.ask(kind, *names)
                versions[kind] = (await ads.take()).version_info
        async with Ads(other.endpoint) as ads:
            for kind, names in kinds.items():
                await ads.ask(kind, *names, version=versions[kind])
            # Endpoints are sent once on each stream: a version does not say that the client still has them.
            again = await ads.take()
            assert (again.type_url, again.version_info) == (ENDPOINTS, versions[ENDPOINTS])
            await ads.silent()


@story
async def test_contract_that_does_not_stand_leaves_the_service_to_grpc() -> None:
    views = Views()
    views.contracts["bad"] = b"\xff\xff"
    views.set(S, instance(S, 1, 1001, contract="bad"))
    async with ControlPlane(views) as plane, Ads(plane.endpoint) as ads:
        await ads.ask(CLUSTER)

        assert len((await ads.take()).resources) == 1


@story
async def test_contract_that_is_missing_holds_back_nothing_for_long() -> None:
    views = Views()
    views.set(S, instance(S, 1, 1001, contract="0" * 64))
    async with ControlPlane(views) as plane, Ads(plane.endpoint) as ads:
        await ads.ask(CLUSTER)

        assert len((await ads.take(10)).resources) == 1


@story
async def test_policy_that_cannot_be_read_is_left_out() -> None:
    async with mesh_of(1001) as (views, plane), Ads(plane.endpoint) as ads:
        await ads.ask(ROUTES, "front")
        first = await ads.take()
        await ads.answer(first, "front")
        views.set_policy(S, b"{nonsense")
        await asyncio.sleep(0.1)
        views.set_policy(S, b'{"timeout": "1.5s"}')
        second = await ads.take()

    assert first.version_info != second.version_info
    assert b"1500m" in second.resources[0].value


@story
async def test_grpc_client_is_told_at_once_that_a_service_is_not_there() -> None:
    async with mesh_of(1001) as (_, plane), Ads(plane.endpoint, agent="gRPC C-core") as ads:
        await ads.ask(LISTENER, "no.such.Service")

        assert len((await ads.take()).resources) == 0


def test_address_that_is_taken_is_told_in_a_sentence() -> None:
    async def run() -> None:
        async with mesh_of() as (_, plane):
            with pytest.raises(SettingsError, match="cannot listen on"):
                await ControlPlane(Views(), str(plane.endpoint)).start()

    asyncio.run(run())
