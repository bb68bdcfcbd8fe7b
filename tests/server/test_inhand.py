"""The deadlines of the calls in hand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mesh.errors import Refusal
from mesh.server.errors import LEAVING, TOO_SLOW
from mesh.server.inhand import CallsInHand
from mesh.wallclock import CLOCK


@dataclass(eq=False)
class Call:
    deadline: float
    service: str = ""
    streams_for: float = 0.0
    told: list[tuple[Refusal, float]] = field(default_factory=list)

    def cut(self, why: Refusal) -> None:
        self.told.append((why, CLOCK.monotonic()))


async def _until_told(*calls: Call) -> None:
    async with asyncio.timeout(5):
        while not all(call.told for call in calls):
            await asyncio.sleep(0.001)


def test_each_call_is_cut_after_its_own_deadline_whatever_the_order_they_came_in() -> None:
    async def story() -> None:
        hand, now = CallsInHand(CLOCK), CLOCK.monotonic()
        deadlines = [now + after for after in (0.12, 0.03, 0.3, 0.06, 0.03, 0.2)]
        calls = [Call(deadline) for deadline in deadlines]
        for call in calls:
            hand.add(call)
        await _until_told(*calls)
        for call, wanted in zip(calls, deadlines, strict=True):
            [(why, when)] = call.told
            assert why is TOO_SLOW
            assert when >= wanted - 0.002
        hand.close()

    asyncio.run(story())


def test_a_call_that_has_ended_is_not_cut() -> None:
    async def story() -> None:
        hand, now = CallsInHand(CLOCK), CLOCK.monotonic()
        ended, other = Call(now + 0.02), Call(now + 0.05)
        hand.add(ended)
        hand.add(other)
        hand.discard(ended)
        await _until_told(other)
        assert not ended.told
        assert len(hand) == 1

    asyncio.run(story())


def test_a_call_after_a_quiet_time_has_its_deadline_too() -> None:
    async def story() -> None:
        hand = CallsInHand(CLOCK)
        for _ in range(3):
            call = Call(CLOCK.monotonic() + 0.02)
            hand.add(call)
            await _until_told(call)
            hand.discard(call)

    asyncio.run(story())


def test_leaving_cuts_first_what_could_not_be_waited_for_and_then_the_rest() -> None:
    async def story() -> None:
        hand, later = CallsInHand(CLOCK), CLOCK.monotonic() + 60
        watch, short = Call(later, streams_for=3600), Call(later, streams_for=5)
        hand.add(watch)
        hand.add(short)
        assert hand.cut(streams_over=60) == 1
        assert [why for why, _ in watch.told] == [LEAVING]
        assert not short.told
        assert hand.cut() == 2
        assert [why for why, _ in short.told] == [LEAVING]
        hand.close()

    asyncio.run(story())
