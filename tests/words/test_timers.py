"""Timers that ring a descriptor, and those of asyncio where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import mesh
from bench.serving import Users
from mesh import timers
from mesh.etcd.watching import ASK_AFTER
from mesh.instance import Endpoint
from mesh.settings import Settings
from mesh.wallclock import CLOCK
from support.etcd import Etcd
from users.v1 import users_pb2, users_pb2_grpc

NAME = contextvars.ContextVar("name", default="nobody")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="no timerfd here")

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class NoReaders(asyncio.SelectorEventLoop):
    """A loop that waits for nothing but its own sockets, as on Windows."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        raise NotImplementedError


@pytest.fixture(params=["timerfd", "none", "no readers"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    if request.param == "none":
        monkeypatch.setattr("mesh.timerfd.create", lambda: None)

    def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = NoReaders if request.param == "no readers" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(story())

    return run


async def _cancelled_within(task: asyncio.Task[Any]) -> None:
    async with timers.timeout(5):
        task.cancel()
        await asyncio.Event().wait()


def _timerfds() -> int:
    """How many this process has; others' may be closed at any time, and none is opened."""
    gc.collect()
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += "timerfd" in os.readlink(f"/proc/self/fd/{fd}")
    return found


def test_each_rings_after_its_time_and_in_the_order_of_their_times(run: Run) -> None:
    async def story() -> None:
        rung: list[tuple[float, float]] = []
        last = asyncio.Event()
        for seconds in (0.05, 0.01, 0.03, -1.0, 0.0):
            due = CLOCK.monotonic() + max(seconds, 0)

            def ring(seconds: float = seconds, due: float = due) -> None:
                rung.append((seconds, CLOCK.monotonic() - due))
                if seconds == 0.05:
                    last.set()

            timers.call_later(seconds, ring)
        await asyncio.wait_for(last.wait(), 5)

        assert [seconds for seconds, _ in rung] in ([-1.0, 0.0, 0.01, 0.03, 0.05], [0.0, -1.0, 0.01, 0.03, 0.05])
        # asyncio's own may come too early, by the resolution of a poll.
        assert all(late > -0.0015 for _, late in rung)

    run(story)


def test_one_that_is_cancelled_does_not_ring_and_those_behind_it_do(run: Run) -> None:
    async def story() -> None:
        rung: list[str] = []
        done = asyncio.Event()
        first = timers.call_later(0.01, lambda: rung.append("first"))
        second = timers.call_later(0.02, lambda: (rung.append("second"), third.cancel()))
        third = timers.call_later(0.025, lambda: rung.append("third"))
        timers.call_later(0.04, done.set)
        first.cancel()
        first.cancel()
        await asyncio.wait_for(done.wait(), 5)
        second.cancel()

        assert rung == ["second"]

    run(story)


def test_one_that_never_rings_keeps_nobody_from_ringing(run: Run) -> None:
    async def story() -> None:
        done = asyncio.Event()
        timers.call_later(float("inf"), done.clear)
        timers.call_later(0.001, done.set)
        await asyncio.wait_for(done.wait(), 5)
        never = asyncio.create_task(CLOCK.sleep(float("inf")))
        await CLOCK.sleep(0.001)
        assert done.is_set()
        assert not never.done()
        never.cancel()

    run(story)


def test_what_a_callback_raises_goes_to_the_loop_and_hurts_no_other(run: Run) -> None:
    async def story() -> None:
        told: list[dict[str, Any]] = []
        done = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        timers.call_later(0.001, lambda: 1 / 0)
        timers.call_later(0.002, done.set)
        await asyncio.wait_for(done.wait(), 5)

        [context] = told
        assert isinstance(context["exception"], ZeroDivisionError)

    run(story)


def test_they_ring_in_nobodys_context(run: Run) -> None:
    async def story() -> None:
        found: list[str] = []
        done = asyncio.Event()
        NAME.set("a call")
        timers.call_later(0.001, lambda: (found.append(NAME.get()), done.set()))
        await asyncio.wait_for(done.wait(), 5)

        assert found == ["nobody"]

    run(story)


def test_a_sleep_lasts_at_least_so_long_and_can_be_cancelled(run: Run) -> None:
    async def story() -> None:
        begun = CLOCK.monotonic()
        await CLOCK.sleep(0.02)
        assert CLOCK.monotonic() - begun > 0.0185
        long = asyncio.create_task(CLOCK.sleep(3600))
        await CLOCK.sleep(0)
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        ended = asyncio.create_task(CLOCK.sleep(0.001))
        await ended
        ended.cancel()

    run(story)


def test_what_is_within_a_timeout_is_cancelled_by_it_and_not_after_it(run: Run) -> None:
    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with timers.timeout(0.01):
                await asyncio.Event().wait()
        async with timers.timeout(0.01):
            pass
        await CLOCK.sleep(0.03)
        with pytest.raises(ValueError, match="its own"):
            async with timers.timeout(5):
                raise ValueError("its own")
        outer = asyncio.current_task()
        assert outer is not None
        with pytest.raises(asyncio.CancelledError):
            await _cancelled_within(outer)

    run(story)


@LINUX
def test_many_that_are_due_within_a_millisecond_ring_the_descriptor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from mesh import timerfd

    set_to: list[float] = []
    ring_in = timerfd.ring_in
    monkeypatch.setattr(timerfd, "ring_in", lambda fd, seconds: (set_to.append(seconds), ring_in(fd, seconds)))

    async def story() -> None:
        rung: list[int] = []
        done = asyncio.Event()
        for number in range(1000):
            timers.call_later(0.02 + number * 1e-6, lambda number=number: rung.append(number))
        timers.call_later(0.03, done.set)
        await asyncio.wait_for(done.wait(), 5)

        assert rung == list(range(1000))

    asyncio.run(story())
    # How long it takes to set them is up to the machine.
    assert len(set_to) < 100


@LINUX
def test_those_that_were_cancelled_are_forgotten() -> None:
    async def story() -> None:
        stays = asyncio.Event()
        timers.call_later(0.05, stays.set)
        for _ in range(10_000):
            timers.call_later(3600, print).cancel()
        bell = timers._bells[asyncio.get_running_loop()]
        assert bell is not None
        assert len(bell._heap) < 500
        assert repr(bell) == "_Bell(1 timers)"
        await asyncio.wait_for(stays.wait(), 5)

    asyncio.run(story())


@LINUX
def test_a_loop_takes_its_descriptor_with_it() -> None:
    async def story() -> None:
        await CLOCK.sleep(0.001)
        timers.call_later(3600, print)

    asyncio.run(story())
    before = _timerfds()  # with none of the one that has ended
    for _ in range(5):
        asyncio.run(story())

    assert _timerfds() <= before


@LINUX
def test_a_loop_that_cannot_have_one_keeps_no_descriptor() -> None:
    async def story() -> None:
        await CLOCK.sleep(0.001)

    before = _timerfds()
    with asyncio.Runner(loop_factory=NoReaders) as runner:
        runner.run(story())

    assert _timerfds() <= before


@LINUX
def test_a_process_that_serves_and_calls_by_etcd_has_no_timer_of_asyncios(etcd: Etcd) -> None:
    """It would make each turn of its loop dearer."""

    async def story() -> None:
        settings = Settings(etcd=(Endpoint("127.0.0.1", etcd.port),), prefix="mesh-no-timer")
        loop: Any = asyncio.get_running_loop()
        async with (
            mesh.Server(Users(), settings=settings),  # type: ignore[abstract]  # the rest is never called
            mesh.connect("users.v1.UserService", settings=settings) as channel,
        ):
            get = users_pb2_grpc.UserServiceStub(channel).GetUser
            for _ in range(20):
                await get(users_pb2.GetUserRequest(id="ada"), timeout=5)
            await CLOCK.sleep(ASK_AFTER + 0.5)  # until signs of life were asked for
            await get(users_pb2.GetUserRequest(id="ada"), timeout=5)
            await CLOCK.sleep(0.1)
            assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
            assert len(timers._bells[loop]._heap) > 3  # type: ignore[union-attr]  # it has one on Linux

    asyncio.run(story())
