"""How soon a watch tells what its stream brings."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, cast

from grpcmesh.etcd.v3 import etcd_pb2 as pb
from mesh.etcd.watching import WatchStream, _answers
from mesh.wallclock import CLOCK


class Stream:
    """A stream that brings what a test gives it."""

    def __init__(self) -> None:
        self.coming: asyncio.Future[pb.WatchResponse] = asyncio.get_running_loop().create_future()

    async def read(self) -> pb.WatchResponse:
        answer = await self.coming
        self.coming = asyncio.get_running_loop().create_future()
        return answer


def test_an_answer_is_told_in_the_very_turn_of_the_loop_in_which_it_is_read() -> None:
    told: list[int] = []

    async def follow(stream: Any) -> None:
        async with aclosing(cast(Any, _answers(cast(WatchStream, stream), CLOCK))) as answers:
            async for answer in answers:
                told.append(answer.watch_id)

    async def story() -> None:
        stream = Stream()
        following = asyncio.create_task(follow(stream))
        for number in range(3):
            await asyncio.sleep(0)  # it waits for the next one
            stream.coming.set_result(pb.WatchResponse(watch_id=number))
            await asyncio.sleep(0)
            assert told[-1:] == [number]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(story())
