"""An instance to call: `python -m bench.rivals.instance`. Prints its address and serves until SIGTERM or stdin's end.

A mesh server whose registry is in memory, since the bench itself registers it, for each client in the client's own
form. It answers with its address, so that a caller knows who it was. A call takes a moment, so that some are in
flight when it is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import Any

from mesh.memory import MemoryStore
from mesh.server import Server
from mesh.settings import Settings
from users.v1 import users_pb2, users_pb2_grpc

WORK = 0.005
"""Seconds that a call takes."""


class Users(users_pb2_grpc.UserServiceServicer):
    """Answers with who it is."""

    def __init__(self) -> None:
        self.name = ""

    async def GetUser(self, request: users_pb2.GetUserRequest, context: Any) -> users_pb2.User:
        """Answer after a moment."""
        await asyncio.sleep(WORK)
        return users_pb2.User(id=request.id, name=self.name)


async def _serve() -> None:
    users, leaving = Users(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
    # Without a limit: what it refused on a machine that was busy for a moment would count as a client's failures.
    async with Server(users, settings=Settings(concurrency_max=0), store=MemoryStore()) as server:
        users.name = str(server.endpoint)
        print(users.name, flush=True)
        await leaving.wait()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve())
