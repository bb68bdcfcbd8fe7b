"""An instance that can be made sick: the reference UserService, which does as a file beside it says.

    DRILL_FAULT=path python -m drills.instance

The file holds JSON: {"delay": seconds, "fail": share, "lose": true, "busy": seconds, "queue": [connections, seconds]}.
It is looked at many times a second. "lose" does each write and then loses the first answer to it; "busy" computes so
long in the event loop; "queue" has each call wait for one of a few connections and hold it so long. A user of an id
that begins with "stuck-" is never got, whatever anybody says. Beside the file, `<path>.counts` tells how many calls
came, by the road that their ids name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

from mesh.server import limits, serve
from mesh.settings import Settings
from usersvc.database import open_store
from usersvc.servicer import UserService

_LOOK_EVERY = 0.02
# By what the ids of users begin with: the roads, and calls over three hops. Overdue are creates that went on over 0.1 s
# past their caller's end.
_TOLD = ("mesh", "blocking", "edge", "hop", "overdue")


class SickUsers(UserService):
    """A UserService with the sickness of the moment."""

    sickness: dict[str, Any]
    counts: Counter[str]
    _answered: set[str]
    _pool: tuple[int, asyncio.Semaphore] | None = None

    async def CreateUser(self, request: Any, context: Any) -> Any:
        await self._suffer(request.user.id, context)
        left, begin = context.time_remaining(), time.monotonic()
        try:
            answer = await super().CreateUser(request, context)
        finally:
            self.counts["overdue"] += left is not None and time.monotonic() - begin > left + 0.1
        return await self._lose(request, answer, context)

    async def GetUser(self, request: Any, context: Any) -> Any:
        if request.id.startswith("stuck-"):
            await _stuck()
        await self._suffer(request.id, context)
        return await super().GetUser(request, context)

    async def ListUsers(self, request: Any, context: Any) -> Any:
        await self._suffer("", context)
        return await super().ListUsers(request, context)

    async def UpdateUser(self, request: Any, context: Any) -> Any:
        await self._suffer(request.user.id, context)
        return await self._lose(request, await super().UpdateUser(request, context), context)

    async def _suffer(self, user: str, context: Any) -> None:
        self.counts[user.partition("-")[0]] += 1
        if busy := self.sickness.get("busy"):
            end = time.thread_time() + busy
            while time.thread_time() < end:
                pass
        if queue := self.sickness.get("queue"):
            async with self._connections(queue[0]):
                await asyncio.sleep(queue[1])
        if delay := self.sickness.get("delay"):
            await asyncio.sleep(delay)
        if random.random() < self.sickness.get("fail", 0.0):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "sick for a drill")

    def _connections(self, number: int) -> asyncio.Semaphore:
        if self._pool is None or self._pool[0] != number:
            self._pool = (number, asyncio.Semaphore(number))
        return self._pool[1]

    async def _lose(self, request: Any, answer: Any, context: Any) -> Any:
        if self.sickness.get("lose") and request.request_id not in self._answered:
            self._answered.add(request.request_id)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost for a drill")
        return answer


async def _stuck() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


async def _follow(service: SickUsers, file: Path) -> None:
    told = Counter[str]()
    while True:
        try:
            service.sickness = json.loads(file.read_text())
        except (FileNotFoundError, ValueError):  # not written yet, or not to its end
            service.sickness = {}
        if service.counts != told:
            told = service.counts.copy()
            fresh = file.with_suffix(".new")
            fresh.write_text(json.dumps({what: told[what] for what in _TOLD}))
            fresh.rename(f"{file}.counts")
        await asyncio.sleep(_LOOK_EVERY)


async def main() -> None:
    """Serve until told to stop."""
    if age := os.environ.get("DRILL_CONNECTION_AGE_MS"):
        limits.CONNECTION_AGE_MS = int(age)
    store = await open_store(os.environ["USERS_DATABASE"])
    service = SickUsers(store)
    service.sickness, service.counts, service._answered = {}, Counter(), set()
    following = asyncio.create_task(_follow(service, Path(os.environ["DRILL_FAULT"])))
    try:
        await serve(service, settings=Settings.from_env())
    finally:
        following.cancel()
        await store.close()


if __name__ == "__main__":
    asyncio.run(main())
