"""Coming: the port, the address told to others, registration, and what keeps a server from starting."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from pathlib import Path

import grpc
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.client.options import connection_options
from mesh.contract.descriptors import services_of
from mesh.errors import SettingsError
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, State
from mesh.memory import MemoryStore
from mesh.registry.record import contract_key, decode, instance_key, service_prefix
from mesh.server import Server, limits
from mesh.settings import Settings
from mesh.store import Lease
from support.echo import SERVICE, EchoRequest, EchoServicer, EchoServiceStub
from support.etcd import Etcd
from support.ports import free_port
from support.service import EchoProcess
from support.serving import QUICK, echo_server, plain_channel


def _settings(**changes: object) -> Settings:
    return dataclasses.replace(QUICK, **changes)  # type: ignore[arg-type]  # names and types are the test's own care


async def _until_registered(server: Server) -> None:
    async with asyncio.timeout(20):
        while not server.registered:
            await asyncio.sleep(0.005)


def test_what_is_registered_tells_all_of_it() -> None:
    async def story() -> None:
        store = MemoryStore()
        settings = _settings(instance_id="echo-7", zone="b", version="1.2.3", weight=5, prefix="here")
        async with echo_server(settings, store=store) as server:
            await _until_registered(server)
            listing = await store.list(service_prefix("here", SERVICE))
            [(key, entry)] = listing.entries.items()
            found = decode(key, entry.value, "here")
            assert (found.id, found.zone, found.version, found.weight) == ("echo-7", "b", "1.2.3", 5)
            assert (found.state, found.endpoint) == (State.READY, server.endpoint)
            contract = await store.get(contract_key("here", found.contract))
            assert contract is not None
            assert services_of(contract.value) == (SERVICE,)
        assert not (await store.list("here/services/")).entries

    asyncio.run(story())


def test_nobody_hears_of_it_before_it_serves() -> None:
    seen: list[int] = []

    class Asking(MemoryStore):
        async def put_if_absent(self, key: str, value: bytes, lease: Lease | None = None) -> bool:
            if "/services/" in key:
                endpoint = decode(key, value, "mesh").endpoint
                async with grpc.aio.insecure_channel(str(endpoint)) as channel:
                    request = health_pb2.HealthCheckRequest(service=SERVICE)
                    seen.append((await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)).status)
            return await super().put_if_absent(key, value, lease)

    async def story() -> None:
        async with echo_server(store=Asking()) as server:
            await _until_registered(server)
        assert seen == [health_pb2.HealthCheckResponse.SERVING]

    asyncio.run(story())


def test_it_serves_without_etcd_and_registers_when_etcd_comes(tmp_path: Path) -> None:
    async def story(service: EchoProcess, etcd: Etcd) -> None:
        async with grpc.aio.insecure_channel(service.address) as channel:
            service.wait_for("not-registered")
            assert (await EchoServiceStub(channel).Unary(EchoRequest(text="x"), timeout=5)).text == "x"
            await asyncio.to_thread(etcd.start)
            service.wait_for("registered", timeout=5)
            async with EtcdStore.from_settings(Settings(etcd=(Endpoint.parse(etcd.endpoint),))) as store:
                assert len((await store.list(service_prefix("mesh", SERVICE))).entries) == 1

    etcd = Etcd(tmp_path / "etcd")
    try:
        with EchoProcess(tmp_path, MESH_ETCD=etcd.endpoint) as service:
            asyncio.run(story(service, etcd))
            service.signal()
            assert service.exit_code(timeout=5) == 0
    finally:
        etcd.stop()


def test_the_second_server_on_a_port_refuses_to_start() -> None:
    async def story() -> None:
        async with echo_server() as first:
            with pytest.raises(SettingsError, match=f"{first.endpoint} is taken by another process: set MESH_LISTEN"):
                await Server(EchoServicer(), settings=_settings(listen=str(first.endpoint))).start()
            async with plain_channel(first) as channel:
                assert (await EchoServiceStub(channel).Unary(EchoRequest(text="x"))).text == "x"

    asyncio.run(story())


def test_a_process_that_cannot_start_says_why_in_one_record_and_ends_with_2(tmp_path: Path) -> None:
    etcd = f"127.0.0.1:{free_port()}"
    with (
        EchoProcess(tmp_path, "first", MESH_ETCD=etcd) as first,
        EchoProcess(tmp_path, "second", MESH_ETCD=etcd, MESH_LISTEN=first.address) as second,
    ):
        assert second.exit_code(timeout=30) == 2
        [record] = second.records()
        assert f"{first.address} is taken by another process" in record["message"]
    with EchoProcess(tmp_path, "third", MESH_ETCD="nonsense") as third:
        assert third.exit_code(timeout=30) == 2
        [record] = third.records()
        assert "MESH_ETCD: 'nonsense' is no address" in record["message"]


@pytest.mark.parametrize(
    ("listen", "sentence"),
    [
        ("nonsense", "MESH_LISTEN is 'nonsense': write host:port"),
        ("127.0.0.1:99999", "MESH_LISTEN is '127.0.0.1:99999': write host:port"),
        ("127.0.0.1:-1", "write host:port"),
        ("192.0.2.7:0", "cannot listen on 192.0.2.7:0: .*MESH_LISTEN wants an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_bound_is_one_sentence(listen: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        asyncio.run(Server(EchoServicer(), settings=_settings(listen=listen)).start())


@pytest.mark.parametrize(
    ("listen", "advertise", "host"),
    [
        ("127.0.0.1:0", "", "127.0.0.1"),
        ("0.0.0.0:0", "", "127.0.0.1"),  # from where etcd, on this machine, is reached
        ("127.0.0.1:0", "users.internal", "users.internal"),
        ("127.0.0.1:0", "10.1.2.3:7000", "10.1.2.3"),
        ("[::1]:0", "", "[::1]"),
    ],
)
def test_the_address_told_to_others_is_one_that_they_can_use(listen: str, advertise: str, host: str) -> None:
    async def story() -> None:
        async with echo_server(_settings(listen=listen, advertise=advertise)) as server:
            assert server.endpoint.host == host
            assert server.endpoint.port == 7000 if ":" in advertise else server.endpoint.port > 0

    asyncio.run(story())


def test_an_address_that_is_none_is_not_told_to_others() -> None:
    with pytest.raises(SettingsError, match="MESH_ADVERTISE"):
        asyncio.run(Server(EchoServicer(), settings=_settings(advertise="http://x/")).start())


def test_each_process_is_somebody_else_unless_it_is_named() -> None:
    async def story() -> None:
        made = {Server(EchoServicer(), settings=_settings(instance_id="")).instance_id for _ in range(50)}
        assert len(made) == 50
        same = {
            Server(EchoServicer(), settings=_settings(instance_id=""), dice=random.Random(1)).instance_id
            for _ in range(2)
        }
        assert len(same) == 1
        assert Server(EchoServicer(), settings=QUICK).instance_id == "echo-1"

    asyncio.run(story())


def test_it_survives_that_its_key_is_deleted(etcd: Etcd) -> None:
    async def story() -> None:
        settings = _settings(prefix=f"starting-{uuid.uuid4().hex[:8]}", etcd=(Endpoint.parse(etcd.endpoint),))
        async with EtcdStore.from_settings(settings) as store, Server(EchoServicer(), settings=settings) as server:
            await _until_registered(server)
            key = instance_key(settings.prefix, server.instances[0])
            assert await store.delete(key)
            async with asyncio.timeout(5):
                while await store.get(key) is None:
                    await asyncio.sleep(0.01)

    asyncio.run(story())


def test_the_pings_of_its_own_clients_are_welcome() -> None:
    """A server that finds pings too many answers with GOAWAY, and the calls on that connection fail."""

    async def story() -> None:
        options = connection_options(ours=True)
        async with (
            echo_server() as server,
            grpc.aio.insecure_channel(str(server.endpoint), options=options) as channel,
        ):
            stub = EchoServiceStub(channel)
            await stub.Unary(EchoRequest(text="connect"))
            assert (await stub.Unary(EchoRequest(text="x", sleep=4.5), timeout=9)).text == "x"

    asyncio.run(story())


def test_a_quiet_connection_of_its_own_clients_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ten strikes that are allowed it would take as many seconds to see."""
    monkeypatch.setattr(limits, "PING_STRIKES", 1)

    async def story() -> None:
        options = connection_options(ours=True)
        async with (
            echo_server() as server,
            grpc.aio.insecure_channel(str(server.endpoint), options=options) as channel,
        ):
            await EchoServiceStub(channel).Unary(EchoRequest(text="connect"))
            assert channel.get_state() is grpc.ChannelConnectivity.READY
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), 3.5)

    asyncio.run(story())


def test_channel_arguments_are_such_that_grpc_knows() -> None:
    """It ignores the others, in silence."""
    library = Path(cygrpc.__file__).read_bytes()
    asked = [*limits.server_options(), *connection_options(ours=True), *connection_options(ours=False)]
    assert [name for name, _ in asked if name.encode() not in library] == []
