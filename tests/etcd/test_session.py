"""Exchanges with a member, where grpc.aio by itself would not say how they ended."""

from __future__ import annotations

import asyncio

import pytest

from mesh.errors import StoreUnavailable
from mesh.etcd.members import Members
from mesh.etcd.session import Session
from mesh.etcd.wire import WATCH, watch_request
from mesh.instance import Endpoint
from mesh.wallclock import DICE
from support.etcd import Etcd
from support.proxy import Proxy


def test_a_stream_whose_connection_is_left_before_it_could_be_made_fails_at_once() -> None:
    # As after a cut: two watches open streams on one new connection, and the failure of one takes it from both. A write
    # of grpc.aio would wait for 3.5 s then, and the list of services be old for as long.
    async def story() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        members = Members([Endpoint("127.0.0.1", port)], None, DICE)
        session = Session(members)

        async def open_and_lose() -> None:
            with members.connection() as connection:
                async with session.stream(WATCH) as stream:
                    sending = asyncio.create_task(stream.send(watch_request("k/", 1)))
                    await asyncio.sleep(0)
                    assert not sending.done()
                    session.leave(connection, StoreUnavailable("the other watch broke"))
                    await sending

        async with asyncio.timeout(1.0):
            with pytest.raises(StoreUnavailable, match="cannot reach etcd"):
                await open_and_lose()
        await session.close()
        server.close()

    asyncio.run(story())


def test_a_stream_that_was_cut_says_why_in_its_next_write(etcd: Etcd) -> None:
    async def story() -> None:
        async with Proxy(etcd.endpoint) as proxy:
            session = Session(Members([Endpoint.parse(proxy.endpoint)], None, DICE))

            async def write_on() -> None:
                async with session.stream(WATCH) as stream:
                    await stream.send(watch_request("k/", 1))
                    await stream.read()
                    proxy.cut()
                    while True:
                        await stream.send(watch_request("k/", 1))
                        await asyncio.sleep(0)

            async with asyncio.timeout(2.0):
                with pytest.raises(StoreUnavailable, match="cannot reach etcd"):
                    await write_on()
            await session.close()

    asyncio.run(story())
