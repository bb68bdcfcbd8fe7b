"""A connection tells its state as soon as it can be known, whoever hears of it first."""

from __future__ import annotations

import asyncio

import pytest
from grpc import ChannelConnectivity

from mesh.client.connection import Connection
from support.fleet import until


class Mute:
    """A channel of gRPC's that says of itself what a test sets, and whose watch never hears of a change."""

    def __init__(self) -> None:
        self.state = ChannelConnectivity.READY

    def get_state(self, try_to_connect: bool = False) -> ChannelConnectivity:
        return self.state

    async def wait_for_state_change(self, last: ChannelConnectivity) -> None:
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Do nothing."""


def test_a_broken_connection_is_told_though_it_says_so_only_after_its_calls_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channel, told = Mute(), list[bool]()
    monkeypatch.setattr("mesh.client.connection.aio.insecure_channel", lambda *_, **__: channel)

    async def story() -> None:
        connection = Connection("127.0.0.1:1", None, lambda connected, _: told.append(connected))
        await until(lambda: told == [True])

        connection.call_failed()
        channel.state = ChannelConnectivity.IDLE

        await until(lambda: told == [True, False])
        await connection.close()

    asyncio.run(story())


def test_a_connection_that_stands_is_not_asked_for_ever_because_calls_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    channel, asked, told = Mute(), list[bool](), list[bool]()
    monkeypatch.setattr("mesh.client.connection.aio.insecure_channel", lambda *_, **__: channel)
    monkeypatch.setattr("mesh.client.connection._MOMENT", 0.0)

    async def story() -> None:
        connection = Connection("127.0.0.1:1", None, lambda connected, _: told.append(connected))
        await until(lambda: told == [True])
        answer = channel.get_state
        monkeypatch.setattr(channel, "get_state", lambda **_: asked.append(True) or answer())

        connection.call_failed()
        await until(lambda: len(asked) == 4)
        for _ in range(10):
            await asyncio.sleep(0)

        assert len(asked) == 4
        assert told == [True]
        await connection.close()

    asyncio.run(story())
