"""Who may speak to etcd, and what is said when it is not us: passwords, tokens, certificates, wrong addresses."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli.authority import ensure
from mesh.errors import StoreDenied, StoreError, StoreUnavailable
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint
from mesh.settings import Settings, TLSFiles
from support.etcd import Etcd, EtcdTLS
from support.ports import free_port
from support.stories import until

TOKEN_TTL = 2.0


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd that asks for passwords and whose tokens live for two seconds."""
    arguments = ["--auth-token=simple", f"--auth-token-ttl={TOKEN_TTL:.0f}", "--bcrypt-cost=4"]
    with Etcd(tmp_path_factory.mktemp("locked"), arguments=arguments) as etcd:
        etcd.enable_auth("mesh", "right", prefix="mesh/")
        yield etcd


def store_at(endpoint: str, user: str = "", password: str = "", tls: TLSFiles | None = None) -> EtcdStore:
    return EtcdStore([Endpoint.parse(endpoint)], user=user, password=password, tls=tls)


def failure(store: EtcdStore) -> str:
    """Return what a first exchange says, which must be one error of ours in one sentence."""

    async def story() -> str:
        async with store:
            with pytest.raises(StoreError) as caught:
                await store.list("mesh/")
        assert not store.connected
        assert "\n" not in str(caught.value)
        return f"{type(caught.value).__name__}: {caught.value}"

    text = asyncio.run(story())
    print(text)
    return text


def test_nobody_listens() -> None:
    port = free_port()
    begin = time.monotonic()
    assert failure(store_at(f"127.0.0.1:{port}")) == (
        f"StoreUnavailable: cannot reach etcd at 127.0.0.1:{port}: "
        "Failed to connect to remote host: Connection refused; is it running? set MESH_ETCD"
    )
    assert time.monotonic() - begin < 1.0


def test_a_name_that_does_not_resolve() -> None:
    text = failure(store_at("nowhere.invalid:2379"))
    assert text.startswith("StoreUnavailable: cannot reach etcd at nowhere.invalid:2379: ")
    assert text.endswith("; is it running? set MESH_ETCD")


def test_something_that_takes_connections_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        begin = time.monotonic()
        text = failure(store_at(f"127.0.0.1:{server.getsockname()[1]}"))
        assert text.startswith("StoreUnavailable: cannot reach etcd at ")
        assert time.monotonic() - begin < 8.0


def test_a_wrong_password(locked: Etcd) -> None:
    assert failure(store_at(locked.endpoint, "mesh", "wrong")) == (
        "StoreDenied: etcd refused user 'mesh', wrong name or password: check MESH_ETCD_USER and MESH_ETCD_PASSWORD"
    )


def test_no_user_where_etcd_asks_for_one(locked: Etcd) -> None:
    assert failure(store_at(locked.endpoint)) == (
        "StoreDenied: etcd asks for a user: set MESH_ETCD_USER and MESH_ETCD_PASSWORD"
    )


def test_a_prefix_that_the_user_may_not_touch(locked: Etcd) -> None:
    async def story() -> None:
        async with store_at(locked.endpoint, "mesh", "right") as store:
            with pytest.raises(StoreDenied, match="ask for read and write permission"):
                await store.put("elsewhere/a", b"1")
            with pytest.raises(StoreDenied, match="ask for read and write permission"):
                async for _ in store.watch("elsewhere/", 0):
                    pass
            assert await store.put("mesh/a", b"1")

    asyncio.run(story())


def test_a_user_where_etcd_asks_for_none_is_let_in(etcd: Etcd) -> None:
    async def story() -> None:
        async with store_at(etcd.endpoint, "mesh", "any") as store:
            await store.put("mesh-access/a", b"1")

    asyncio.run(story())


def test_an_expired_token_is_renewed_for_calls_and_watches(locked: Etcd) -> None:
    async def story() -> None:
        async with (
            store_at(locked.endpoint, "mesh", "right") as idle,
            store_at(locked.endpoint, "mesh", "right") as busy,
        ):
            revision = await idle.put("mesh/token", b"0")
            await asyncio.sleep(TOKEN_TTL + 2.5)  # etcd looks for old tokens once a second
            seen: list[bytes] = []

            async def follow() -> None:
                async for changed in idle.watch("mesh/token", revision):
                    seen.extend(e.value for e in changed.changes.values() if e)

            task = asyncio.create_task(follow())
            await busy.put("mesh/token", b"1")
            await until(lambda: seen == [b"1"], 5.0, "the watch began with a new token")
            await asyncio.sleep(TOKEN_TTL + 2.5)
            await idle.put("mesh/token", b"2")
            await until(lambda: seen == [b"1", b"2"], 5.0)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(story())


def test_changed_permissions_do_not_throw_out_those_who_are_in(locked: Etcd) -> None:
    async def story() -> None:
        async with store_at(locked.endpoint, "mesh", "right") as store:
            await store.put("mesh/old", b"1")
            await asyncio.to_thread(locked.ctl, "role", "add", f"another-{free_port()}")  # the auth revision moves on
            await store.put("mesh/old", b"2")

    asyncio.run(story())


def test_a_restarted_etcd_has_forgotten_our_token(tmp_path: Path) -> None:
    async def story() -> None:
        with Etcd(tmp_path, arguments=["--bcrypt-cost=4"]) as etcd:
            etcd.enable_auth("mesh", "right", prefix="mesh/")
            async with store_at(etcd.endpoint, "mesh", "right") as store:
                revision = await store.put("mesh/a", b"1")
                seen: list[bytes] = []

                async def follow() -> None:
                    async for changed in store.watch("mesh/", revision):
                        seen.extend(e.value for e in changed.changes.values() if e)

                task = asyncio.create_task(follow())
                lease = await store.lease(2)
                await asyncio.to_thread(etcd.restart)
                await until(lambda: store.connected, 5.0)
                await store.put("mesh/a", b"2", lease)
                await until(lambda: seen == [b"2"], 3.0)
                task.cancel()
                await asyncio.wait([task])

    asyncio.run(story())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Etcd, TLSFiles]]:
    """An etcd that speaks TLS and refuses clients without a certificate, and a client's files."""
    folder = tmp_path_factory.mktemp("tls")
    roles = ensure(folder, time.time())
    member, client = roles["etcd"], roles["client"]
    assert member.cert is not None
    assert member.key is not None
    tls = EtcdTLS(member.ca, member.cert, member.key, client_cert=client.cert, client_key=client.key)
    with Etcd(tmp_path_factory.mktemp("secured"), tls=tls) as etcd:
        yield etcd, client


def test_both_sides_show_certificates(secured: tuple[Etcd, TLSFiles]) -> None:
    etcd, files = secured

    async def story() -> None:
        async with store_at(etcd.endpoint, tls=files) as store:
            await store.put("mesh/a", b"1")

    asyncio.run(story())
    assert etcd.ctl("get", "mesh/a", "--print-value-only").strip() == "1"


def test_a_client_without_a_certificate_is_refused(secured: tuple[Etcd, TLSFiles]) -> None:
    etcd, files = secured
    text = failure(store_at(etcd.endpoint, tls=TLSFiles(files.ca)))
    assert text.startswith(f"StoreUnavailable: cannot reach etcd at {etcd.endpoint}: ")
    assert "MESH_ETCD_TLS_CA" in text


def test_a_client_in_plain_text_is_told_of_tls(secured: tuple[Etcd, TLSFiles]) -> None:
    text = failure(store_at(secured[0].endpoint))
    assert text.startswith("StoreUnavailable: ")
    assert "MESH_ETCD_TLS_CA" in text


def test_an_etcd_of_another_authority_is_refused(secured: tuple[Etcd, TLSFiles], tmp_path: Path) -> None:
    stranger = ensure(tmp_path, time.time())["client"]
    text = failure(store_at(secured[0].endpoint, tls=stranger))
    assert "check MESH_ETCD_TLS_CA" in text


def test_renewed_certificates_are_used_without_a_restart(secured: tuple[Etcd, TLSFiles], tmp_path: Path) -> None:
    etcd, files = secured
    own = TLSFiles(tmp_path / "ca.pem", tmp_path / "own.pem", tmp_path / "own.key")

    def install() -> None:
        for source, target in ((files.ca, own.ca), (files.cert, own.cert), (files.key, own.key)):
            assert source is not None
            assert target is not None
            target.write_bytes(source.read_bytes())

    async def story() -> None:
        install()
        async with store_at(etcd.endpoint, tls=own) as store:
            await store.put("mesh/a", b"1")
            before = store._session._members._current
            install()
            await store.put("mesh/a", b"2")
            assert store._session._members._current is not before
            assert own.cert is not None
            own.cert.write_text("half written")
            await store.put("mesh/a", b"3")  # the connection before goes on

    asyncio.run(story())


def test_settings_name_the_store_and_hide_the_password() -> None:
    settings = Settings(etcd=(Endpoint("127.0.0.1", 1),), etcd_user="mesh", etcd_password="secret")
    store = EtcdStore.from_settings(settings)
    assert "secret" not in repr(store)
    assert repr(store) == "EtcdStore(127.0.0.1:1, connected=False)"


def test_a_closed_store_says_so(etcd: Etcd) -> None:
    async def story() -> None:
        store = store_at(etcd.endpoint)
        await store.list("mesh/")
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.list("mesh/")

    asyncio.run(story())
