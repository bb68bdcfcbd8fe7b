"""A new Envoy in the place of an old one, on the same port, while callers call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from support.envoy import Envoy
from support.front import Front
from support.http1 import Client
from users.v1 import users_pb2, users_pb2_grpc

# Requests under way and connections that are open at the edge; the admin page's own have another name.
ACTIVE = "http.edge.downstream_(rq|cx)_active"


class Callers:
    """Two that call one after the other, by JSON over a kept connection and by gRPC, and what failed."""

    def __init__(self, address: str) -> None:
        self.calls, self.failed = 0, list[str]()
        self._address, self._stopped = address, False

    async def call(self) -> None:
        """Call until told to stop."""
        await asyncio.gather(self._json(), self._grpc())

    def stop(self) -> None:
        """Begin no more calls."""
        self._stopped = True

    async def _json(self) -> None:
        client = Client(self._address)
        while not self._stopped:
            answer = await client.ask("GET", "/v1/users")
            self._count(answer.status == 200, str(answer))
        await client.close()

    async def _grpc(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = users_pb2_grpc.UserServiceStub(channel)
            while not self._stopped:
                try:
                    await stub.ListUsers(users_pb2.ListUsersRequest(), timeout=5)
                    self._count(True)
                except grpc.aio.AioRpcError as e:
                    self._count(False, str(e))

    def _count(self, good: bool, told: str = "") -> None:
        self.calls += 1
        if not good:
            self.failed.append(told)


def test_envoy_is_replaced_by_another_one_on_its_port_without_a_failed_call(tmp_path: Path) -> None:
    async def story() -> None:
        async with Front(tmp_path, instances=2) as front:
            old, callers = front.envoy, Callers(front.address)
            calling = asyncio.create_task(callers.call())
            with Envoy(tmp_path, front.plane.endpoint, name="next", edge=old.edge) as new:
                await asyncio.to_thread(new.wait_ready)
                old.get("/drain_listeners?graceful&skip_exit", "POST")
                async with asyncio.timeout(20):
                    while any((await asyncio.to_thread(old.stats, ACTIVE)).values()):
                        await asyncio.sleep(0.02)
                await asyncio.to_thread(old.stop)
                then = callers.calls
                async with asyncio.timeout(20):
                    while callers.calls < then + 50:
                        await asyncio.sleep(0.02)
                callers.stop()
                await calling
            assert callers.failed == []

    asyncio.run(story())
