"""The gate of a server whose handlers compute in the event loop: when it shuts, and who begins when it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import grpc
import pytest

from mesh.server.gate import _SLICE, Gate
from support.echo import EchoRequest, EchoServiceStub
from support.edge import Process
from support.ports import free_port


class Hand:
    """A clock that is moved by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps at a gate")


def gate(clock: Hand, told: list[bool]) -> Gate:
    return Gate(clock, told.append)


def looks(made: Gate, clock: Hand, times: int, late: float, calls: int) -> None:
    """Let its timer ring so many times, so late, with that many calls ended in between."""
    for _ in range(times):
        for _ in range(calls):
            made.passed(clock.now)
        clock.now += 0.05 + late
        made._look()


def test_it_shuts_where_the_loop_is_late_and_few_calls_end_and_opens_again() -> None:
    async def story() -> None:
        clock, told = Hand(), list[bool]()
        made = gate(clock, told)
        made.passed(clock.now)
        looks(made, clock, 10, late=0.010, calls=5)
        assert made.is_shut
        looks(made, clock, 20, late=0.0, calls=5)
        assert not made.is_shut
        assert told == [True, False]

    asyncio.run(story())


@pytest.mark.parametrize(("late", "calls"), [(0.0, 1), (0.002, 5), (0.010, 100)])
def test_it_stays_open_where_the_loop_is_on_time_or_calls_are_small(late: float, calls: int) -> None:
    async def story() -> None:
        clock, told = Hand(), list[bool]()
        made = gate(clock, told)
        made.passed(clock.now)
        looks(made, clock, 50, late=late, calls=calls)
        assert told == []

    asyncio.run(story())


def test_it_looks_only_while_calls_come() -> None:
    async def story() -> None:
        clock = Hand()
        made = gate(clock, [])
        made.passed(clock.now)
        clock.now += 0.05
        made._look()
        assert not made._looking
        made.passed(clock.now)
        assert made._looking

    asyncio.run(story())


def test_calls_begin_in_their_order_a_slice_at_a_time_and_who_left_is_passed_over() -> None:
    async def story() -> None:
        clock, begun = Hand(), list[int]()
        made = gate(clock, [])
        made._cost = _SLICE / 3.5

        async def call(number: int) -> None:
            await made.turn()
            begun.append(number)
            clock.now += 0.010

        calls = [asyncio.create_task(call(number)) for number in range(7)]
        await asyncio.sleep(0)
        calls[1].cancel()
        together = []
        while len(begun) < 6:
            before = len(begun)
            await asyncio.sleep(0)
            together += [len(begun) - before] if len(begun) > before else []
            clock.now += 0.0001
        assert begun == [0, 2, 3, 4, 5, 6]
        assert max(together) == 3
        await asyncio.wait(calls)
        while made._in_round:
            await asyncio.sleep(0.002)

    asyncio.run(story())


def test_one_who_comes_alone_does_not_wait() -> None:
    async def story() -> None:
        made = gate(Hand(), [])
        alone = asyncio.create_task(made.turn())
        for _ in range(4):
            await asyncio.sleep(0)
        assert alone.done()

    asyncio.run(story())


def test_after_a_refusal_it_waits_until_nobody_comes_any_more_but_not_for_ever() -> None:
    async def story() -> None:
        clock = Hand()
        made = gate(clock, [])
        await made.turn()
        made.refused()
        waiting = asyncio.create_task(made.turn())
        rounds = asyncio.get_running_loop().time() + 0.02
        while asyncio.get_running_loop().time() < rounds:
            made.refused()
            await asyncio.sleep(0)
            assert not waiting.done()
        clock.now += 0.011
        await asyncio.wait_for(waiting, 1.0)

    asyncio.run(story())


HOLDS = 0.010
"""Seconds that each call holds the loop of its server: a hundred a second are all that it can do."""


@asynccontextmanager
async def server_that_blocks(folder: Path) -> AsyncIterator[Any]:
    """Give a stub to an EchoService in a process of its own. Its etcd is nowhere, which it does not mind."""
    address = f"127.0.0.1:{free_port()}"
    env = {
        "MESH_LISTEN": address,
        "MESH_ETCD": f"127.0.0.1:{free_port()}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    server = Process(folder, "echo", env, "support.echo")
    server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = EchoServiceStub(channel)
            await stub.Unary(EchoRequest(), timeout=30, wait_for_ready=True)
            yield stub
    finally:
        await asyncio.to_thread(server.end, SIGKILL)


async def good_ones(stub: Any, rate: float, seconds: float) -> float:
    """Call at a steady rate, each call with a second to live; return the good answers a second."""
    begin, answered = time.monotonic(), 0

    async def one() -> None:
        nonlocal answered
        with suppress(grpc.aio.AioRpcError):
            await stub.Unary(EchoRequest(sleep=HOLDS, block=True), timeout=1.0)
            answered += 1

    calls = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        calls.append(asyncio.create_task(one()))
    await asyncio.gather(*calls)
    return answered / seconds


@pytest.mark.alone
def test_a_server_whose_handlers_hold_the_loop_is_still_of_use_at_three_times_what_it_can_bear(tmp_path: Path) -> None:
    """Without the gate it gives two good answers a second; how many it gives depends on what else the machine does."""

    async def story() -> None:
        async with server_that_blocks(tmp_path) as stub:
            assert await good_ones(stub, 0.5 / HOLDS, 3.0) > 0.45 / HOLDS
            assert await good_ones(stub, 3.0 / HOLDS, 10.0) > 0.3 / HOLDS

    asyncio.run(story())
