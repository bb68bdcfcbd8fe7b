"""Mutual TLS on every hop of the edge: caller to Envoy, Envoy to instance, Envoy to control plane."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from mesh.settings import TLSFiles
from support.certificates import Authority
from support.envoy import Envoy
from support.front import Front
from support.http1 import Client
from users.v1 import users_pb2, users_pb2_grpc


def names(tls: TLSFiles) -> Mapping[str, str]:
    return {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)}


def serial(address: str, tls: TLSFiles) -> int:
    """The serial number of the certificate that the edge shows."""
    context = ssl.create_default_context(cafile=str(tls.ca))
    assert tls.cert is not None
    context.load_cert_chain(tls.cert, tls.key)
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain, server_hostname=host) as s:
        found = s.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def test_every_hop_is_mutual_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    files = authority.issue("edge")
    stranger = Authority(tmp_path / "other").issue("stranger")
    assert files.cert is not None
    assert files.key is not None

    async def ask(tls: Mapping[str, str], address: str) -> int:
        client = Client(address, tls)
        try:
            async with asyncio.timeout(5):
                return (await client.ask("GET", "/v1/users")).status
        finally:
            await client.close()

    async def story() -> None:
        async with Front(tmp_path, tls=files) as front:
            assert await ask(names(files), front.address) == 200
            await refused_without_certificate(front)
            await renewed(front)

    async def refused_without_certificate(front: Front) -> None:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask({"ca": str(files.ca)}, front.address)
        other = {"ca": str(files.ca), "cert": str(stranger.cert), "key": str(stranger.key)}
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(other, front.address)
        plain = grpc.aio.insecure_channel(str(front.plane.endpoint))
        with pytest.raises(grpc.aio.AioRpcError):
            await plain.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=3)
        await plain.close()

    async def renewed(front: Front) -> None:
        before = await asyncio.to_thread(serial, front.address, files)
        fresh = authority.issue("edge", folder=tmp_path / "fresh")
        for new, old in ((fresh.cert, files.cert), (fresh.key, files.key)):
            assert new is not None
            assert old is not None
            shutil.copy(new, f"{old}.new")
            os.replace(f"{old}.new", old)
        async with asyncio.timeout(10):
            while await asyncio.to_thread(serial, front.address, files) == before:
                await asyncio.sleep(0.05)
        assert await ask(names(files), front.address) == 200
        creds = grpc.ssl_channel_credentials(
            files.ca.read_bytes(),
            files.key.read_bytes() if files.key else None,
            files.cert.read_bytes() if files.cert else None,
        )
        async with grpc.aio.secure_channel(front.address, creds) as channel:
            await users_pb2_grpc.UserServiceStub(channel).ListUsers(users_pb2.ListUsersRequest(), timeout=5)

    asyncio.run(story())


def test_envoy_without_a_certificate_learns_nothing(tmp_path: Path) -> None:
    files = Authority(tmp_path / "authority").issue("edge")

    async def story() -> None:
        async with Front(tmp_path, tls=files) as front:
            with (
                Envoy(tmp_path, front.plane.endpoint, name="stranger") as envoy,
                pytest.raises(AssertionError, match="not"),
            ):
                await asyncio.to_thread(envoy.wait_ready, 2.0)

    asyncio.run(story())
