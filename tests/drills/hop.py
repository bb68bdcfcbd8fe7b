"""A server in the middle of a road: EchoService that asks the next one, by DRILL_NEXT, or is the last.

    DRILL_NEXT=127.0.0.1:5001 python -m drills.hop

Each adds to the answer's text how many seconds it had left when it began. The last one waits as it is asked to, and
tells a caller that asks for "begun" how many calls it has begun with no time left, and how many of them it let run on
past their time. Asked for "hop-…" it has the UserService at DRILL_USERS create a user of that id.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Any

import mesh
from mesh.policy import MethodPolicy
from support import callers
from support.echo import SERVICE, EchoRequest, EchoResponse, EchoServicer, EchoServiceStub
from users.v1 import users_pb2, users_pb2_grpc


class Hop(EchoServicer):
    """Passes a call on, or answers it."""

    def __init__(self, stub: Any, users: Any = None) -> None:
        super().__init__()
        self._stub, self._users = stub, users
        self._late = self._overdue = 0

    async def Unary(self, request: Any, context: Any) -> Any:
        left = context.time_remaining()
        if self._stub is not None:
            answer = await self._stub.Unary(EchoRequest(text=request.text, sleep=request.sleep), timeout=60)
            return EchoResponse(text=f"{left:.6f} {answer.text}")
        if request.text == "begun":
            return EchoResponse(text=f"{self._late} {self._overdue}")
        if request.text.startswith("hop-"):
            user = users_pb2.User(id=request.text, name="Hop", email=f"{request.text}@hop.example")
            asked = users_pb2.CreateUserRequest(user=user, request_id=str(uuid.uuid4()))
            await self._users.CreateUser(asked, timeout=60)
            return EchoResponse(text=f"{left:.6f}")
        self._late += left <= 0
        end = time.monotonic() + left
        try:
            await asyncio.sleep(request.sleep)
        finally:
            self._overdue += time.monotonic() > end + 0.1
        return EchoResponse(text=f"{left:.6f}")


async def main() -> None:
    """Serve until told to stop."""
    if target := os.environ.get("DRILL_NEXT"):
        once = {f"/{SERVICE}/Unary": MethodPolicy(idempotent=True)}
        async with mesh.connect(SERVICE, endpoints=[target], policies=once) as channel:
            await mesh.serve(Hop(EchoServiceStub(channel)))
    elif users := os.environ.get("DRILL_USERS"):
        async with mesh.connect(callers.SERVICE, endpoints=[users]) as channel:
            await mesh.serve(Hop(None, users_pb2_grpc.UserServiceStub(channel)))
    else:
        await mesh.serve(Hop(None))


if __name__ == "__main__":
    asyncio.run(main())
