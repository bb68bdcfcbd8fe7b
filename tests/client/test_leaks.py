"""What calls leave behind: nothing. Counted after ten thousand of all kinds and fates, and after a call was cancelled
at every place where it waits.

Counted are living objects by type (calls, permits, tickets, tasks, channels, subscriptions …), numbers that pools and
servers keep of calls in flight, threads and descriptors. Whatever is over the baseline for longer than `until` waits is
a leak.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
import types
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc import aio

import mesh
import mesh.blocking
from mesh import timers
from mesh.balancing.picker import Candidate
from mesh.client.blocking_call import BlockingCall
from mesh.client.call import Call
from mesh.client.connection import Connection
from mesh.client.health import HealthWatch
from mesh.client.pool import Pool
from mesh.client.thread import LoopThread
from mesh.memory import MemoryStore
from mesh.policy import Balancer, BreakerPolicy, BudgetPolicy, HedgingPolicy, MethodPolicy, RetryPolicy
from mesh.registry.resolver import Subscription
from mesh.resilience.breaker import Permit
from mesh.resilience.budget import Budget
from mesh.resilience.hops import CURRENT, Hop
from mesh.resilience.limiter import Ticket
from mesh.resilience.retry import PREVIOUS_ATTEMPTS
from mesh.server import Server
from mesh.server.call import ServedCall
from mesh.settings import Settings
from support.echo import SERVICE, EchoRequest, EchoServicer, EchoServiceStub
from support.fleet import until

THREADS = 8
KINDS = ("Unary", "ServerStream", "ClientStream", "Bidi")
POLICY = MethodPolicy(
    timeout=5.0,
    idempotent=True,
    retry=RetryPolicy(initial_backoff=0.0002, max_backoff=0.0005),
    # Opens often and is soon tried again: permits are counted only in between.
    breaker=BreakerPolicy(open_for=0.05),
)
POLICIES = {f"/{SERVICE}/{kind}": POLICY for kind in KINDS}
HEDGED = {path: POLICY._replace(hedging=HedgingPolicy(max_attempts=3, delay=0.002)) for path in POLICIES}
# More than half of these calls are to be tried again: what is tried is not the budget.
PLENTY = BudgetPolicy(share=10.0, per_second=1000.0)
COUNTED = (
    *(
        Call,
        BlockingCall,
        Permit,
        Ticket,
        ServedCall,
        Hop,
        Subscription,
        Candidate,
        Connection,
        HealthWatch,
        asyncio.Task,
    ),
    *(aio.Channel, grpc.Channel),
)


# The core keeps as many threads as it has had to do; a leak would be of thousands.
SLACK = {"threads of gRPC's core too": 8}


class Flaky(EchoServicer):
    """Refuses what is called "again" until it is."""

    async def _answer(self, request: Any, context: Any, *, fail: bool = True) -> Any:
        if request.text == "again" and PREVIOUS_ATTEMPTS not in dict(context.invocation_metadata()):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "once more, please")
        return await super()._answer(request, context, fail=fail)


@pytest.fixture(autouse=True)
def _nothing_is_kept_for_a_report() -> Iterator[None]:
    """pytest keeps log records, with the frames of what they tell of: calls that look as if somebody held them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@dataclass
class Site:
    """Three servers in one store, and a channel of each face that calls them."""

    servers: list[Server]
    store: MemoryStore
    channel: mesh.Channel
    blocking: mesh.blocking.Channel
    hop: Hop = field(default_factory=lambda: Hop(time.monotonic() + 1000.0, lambda: None))
    """An incoming call, for which half of the threads make theirs."""

    @property
    def pools(self) -> list[Pool]:
        return [self.channel._pool, self.blocking._inner._pool]

    def connect(self) -> mesh.Channel:
        return mesh.connect(SERVICE, store=self.store, settings=Settings(), policies=POLICIES)


@asynccontextmanager
async def site(policies: Mapping[str, MethodPolicy] = POLICIES) -> AsyncIterator[Site]:
    store = MemoryStore()
    servers = [
        Server(Flaky(name), settings=Settings(drain=1.0, settle=0.0, instance_id=name), store=store) for name in "abc"
    ]
    for server in servers:
        await server.start()
    where = [str(server.endpoint) for server in servers]
    channel = mesh.connect(SERVICE, store=store, settings=Settings(), policies=policies)
    blocking = await asyncio.to_thread(_opened, where, policies)
    try:
        async with channel:
            await until(lambda: len(channel._pool.roster.pickable) == 3)
            await until(lambda: len(blocking._inner._pool.roster.pickable) == 3)
            # Everybody's health is watched by both, from the second second on.
            await until(lambda: sum(len(server._router.plumbing) for server in servers) == 6)
            here = Site(servers, store, channel, blocking)
            for pool in here.pools:
                pool.budget = Budget(PLENTY, pool.clock.monotonic())
            yield here
    finally:
        await asyncio.to_thread(blocking.close)
        for server in servers:
            await server.leave()


def _opened(
    where: list[str], policies: Mapping[str, MethodPolicy], balancer: Balancer | None = None
) -> mesh.blocking.Channel:
    made = mesh.blocking.connect(SERVICE, endpoints=where, policies=policies, balancer=balancer)
    return made.__enter__()


# -- counting


def living() -> Counter[str]:
    """Objects of the counted types that somebody still holds."""
    gc.collect()
    kinds: dict[type, str] = {}
    found: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if kind not in kinds:
            kinds[kind] = next((counted.__name__ for counted in COUNTED if issubclass(kind, counted)), "")
        if kinds[kind]:
            found[kinds[kind]] += 1
    return found


def census(here: Site) -> dict[str, int]:
    """All that is counted, by name."""
    found = {f"objects: {kind}": number for kind, number in living().items()}
    loop = LoopThread.shared().loop
    found["tasks here"] = len(asyncio.all_tasks())
    found["tasks of the blocking loop"] = len(asyncio.all_tasks(loop))
    found["threads"] = threading.active_count()
    found["threads of gRPC's core too"] = len(os.listdir("/proc/self/task"))
    found["descriptors"] = len(os.listdir("/proc/self/fd"))
    for name, pool in zip(("asyncio", "blocking"), here.pools, strict=True):
        found[f"{name}: in flight"] = sum(slot.connection.in_flight for slot in pool.roster.slots)
        found[f"{name}: waiting"] = len(pool._waiters)
        found[f"{name}: tasks of the pool"] = len(pool._tasks)
        found[f"{name}: endpoints not closed"] = sum(not slot.breaker.is_closed for slot in pool.roster.slots)
    found["held by the incoming call"] = len(here.hop._blocking or ())
    found["in hand"] = sum(server.unfinished for server in here.servers)
    doors = [server._router._admission for server in here.servers]
    found["let in"] = sum(door.limiter.in_work for door in doors if door)
    found["queued"] = sum(door.limiter.waiting for door in doors if door)
    return found


async def left_behind(here: Site, before: dict[str, int], within: float = 10.0) -> dict[str, int]:
    """What there is more than before, once that no longer shrinks to nothing by itself."""
    end = time.monotonic() + within
    while True:
        await heal(here)
        await asyncio.sleep(0.05)  # what was answered last ends
        now = census(here)
        over = {
            what: now[what] - before.get(what, 0)
            for what in now
            if now[what] > before.get(what, 0) + SLACK.get(what, 0)
        }
        if not over or time.monotonic() > end:
            return over


async def heal(here: Site) -> None:
    """Have a few calls go well. A breaker whose permits had leaked would never close by them."""
    stub, twin = EchoServiceStub(here.channel), EchoServiceStub(here.blocking)
    for _ in range(12):
        with suppress(aio.AioRpcError):
            await stub.Unary(EchoRequest(text="well"), timeout=1.0)
    for _ in range(12):
        await asyncio.to_thread(_plain, lambda: twin.Unary(EchoRequest(text="well"), timeout=1.0))


async def baseline(here: Site) -> dict[str, int]:
    """Count once every kind of call was made, so that what is made once and kept is there."""
    stub, twin = EchoServiceStub(here.channel), EchoServiceStub(here.blocking)
    for kind in KINDS:
        await finish(begin(stub, kind, EchoRequest(text="well", count=2)))
        await asyncio.to_thread(finish_blocking, begin(twin, kind, EchoRequest(text="well", count=2)))
    # A loop's first timer makes the descriptor that all of them ring.
    await timers.sleep(0)
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(timers.sleep(0), LoopThread.shared().loop))
    before: dict[str, int] = {}
    while before != (now := census(here)):
        before = now
        await heal(here)
        await asyncio.sleep(0.05)
    return before


# -- calling


def begin(stub: Any, kind: str, request: Any, **options: Any) -> Any:
    """Begin a call of a kind; streams of requests are of two. Of the blocking face, return the call itself."""
    method = getattr(stub, kind)
    sent = iter([request, request]) if kind in ("ClientStream", "Bidi") else request
    if kind in ("Unary", "ClientStream") and hasattr(method, "future"):
        return method.future(sent, **options)
    return method(sent, **options)


async def finish(call: Any) -> str:
    """Wait for a call's end and return its code, or LEFT where the caller's own task was cancelled."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except aio.AioRpcError as e:
        return e.code().name
    except asyncio.CancelledError:
        return "LEFT"
    return "OK"


def finish_blocking(call: Any) -> str:
    """Wait for a call's end in this thread and return its code."""
    return _plain(lambda: list(call) if _streams(call) else call.result())


def _plain(work: Callable[[], Any]) -> str:
    try:
        work()
    except grpc.FutureCancelledError:
        return "CANCELLED"
    except grpc.RpcError as e:
        code: str = e.code().name  # type: ignore[attr-defined]  # a grpc.Call too
        return code
    return "OK"


def _streams(call: Any) -> bool:
    return hasattr(call, "__next__") and not getattr(call, "_unary", False)


FATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "well": ({"count": 2}, {}),
    "again": ({"text": "again", "count": 2}, {}),
    "refused": ({"fail": "NOT_FOUND"}, {}),
    "failing": ({"fail": "UNAVAILABLE"}, {}),
    "late": ({"sleep": 0.3, "count": 2}, {"timeout": 0.01}),
    "too late": ({}, {"timeout": 0.0}),
    "unsendable": ({}, {"metadata": (("bad\n", "x"),)}),
    "cancelled": ({"sleep": 0.002, "count": 2}, {}),
    "left": ({"sleep": 0.002, "count": 2}, {}),
    "dropped": ({"count": 100}, {"timeout": 0.5}),
}


async def asynchronous(here: Site, number: int) -> str:
    """One call of the asyncio face."""
    kind, fate = KINDS[number % 4], list(FATES)[number // 4 % len(FATES)]
    words, options = FATES[fate]
    stub = EchoServiceStub(here.channel)
    call = begin(stub, kind, EchoRequest(**{"text": fate, **words}), **options)
    turns = number // (4 * len(FATES)) % 60
    if fate == "cancelled":
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
    if fate == "left":
        reader = asyncio.create_task(finish(call))
        for _ in range(turns):
            await asyncio.sleep(0)
        reader.cancel()
        with suppress(asyncio.CancelledError):
            return await reader
        return "LEFT"
    if fate == "dropped":
        if kind in ("ServerStream", "Bidi"):
            with suppress(aio.AioRpcError):
                await anext(aiter(call))
        return "DROPPED"
    return await finish(call)


def from_a_thread(here: Site, number: int) -> str:
    """One call of the blocking face."""
    kind, fate = KINDS[number % 4], list(FATES)[number // 4 % len(FATES)]
    words, options = FATES[fate]
    stub = EchoServiceStub(here.blocking)
    request = EchoRequest(**{"text": fate, **words})
    if kind == "Unary" and fate not in ("cancelled", "left", "dropped"):
        return _plain(lambda: stub.Unary(request, **options))
    call = begin(stub, kind, request, **options)
    if fate in ("cancelled", "left"):
        end = time.perf_counter() + number // (4 * len(FATES)) % 60 * 50e-6
        while time.perf_counter() < end:
            time.sleep(0)
        call.cancel()
    if fate == "dropped":
        if _streams(call):
            with suppress(grpc.RpcError):
                next(call)
        return "DROPPED"
    return finish_blocking(call)


async def mixed(here: Site, number: int) -> Counter[str]:
    """Make so many calls, three of five by the asyncio face, some fifty at once and eight threads; count their ends."""
    ends: Counter[str] = Counter()
    numbers = iter(range(number * 3 // 5))

    async def caller() -> None:
        for turn in numbers:
            ends[await asynchronous(here, turn)] += 1

    share = number - number * 3 // 5
    work = [asyncio.to_thread(_several, here, range(first, share, THREADS)) for first in range(THREADS)]
    told = asyncio.gather(*work)
    await asyncio.gather(*(caller() for _ in range(50)))
    return sum(await told, ends)


def _several(here: Site, numbers: range) -> Counter[str]:
    CURRENT.set(here.hop if numbers.start % 2 else None)
    return Counter(from_a_thread(here, number) for number in numbers)


def run(story: Callable[[Site], Coroutine[Any, Any, None]], policies: Mapping[str, MethodPolicy] = POLICIES) -> None:
    """Tell a story at a site of its own. Its threads are all there from the start, so that they can be counted."""

    async def whole() -> None:
        threads = ThreadPoolExecutor(THREADS)
        together = threading.Barrier(THREADS)
        list(threads.map(lambda _: together.wait(), range(THREADS)))
        asyncio.get_running_loop().set_default_executor(threads)
        async with site(policies) as here:
            await story(here)

    asyncio.run(asyncio.wait_for(whole(), 100.0))


def test_ten_thousand_mixed_calls_leave_nothing_behind() -> None:
    async def story(here: Site) -> None:
        before = await baseline(here)
        ends = await mixed(here, 10_000)
        assert sum(ends.values()) == 10_000
        for end in ("OK", "NOT_FOUND", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "LEFT", "INVALID_ARGUMENT"):
            assert ends[end] > 100, f"too few ended as {end}: {ends}"
        assert await left_behind(here, before) == {}

    run(story)


def test_calls_that_are_hedged_leave_nothing_behind() -> None:
    async def story(here: Site) -> None:
        before = await baseline(here)
        assert sum((await mixed(here, 2_000)).values()) == 2_000
        assert await left_behind(here, before) == {}

    run(story, HEDGED)


# -- cancelled at every place where it waits


async def unary(stub: Any, request: Any) -> None:
    await stub.Unary(request)


async def first_metadata(stub: Any, request: Any) -> None:
    call = stub.Unary(request)
    await call.initial_metadata()
    await call.code()


async def responses(stub: Any, request: Any) -> None:
    async for _ in stub.ServerStream(request):
        pass


async def requests(stub: Any, request: Any) -> None:
    call = stub.ClientStream()
    await call.write(request)
    await call.write(request)
    await call.done_writing()
    await call


async def from_an_iterator(stub: Any, request: Any) -> None:
    await stub.ClientStream(iter([request, request]))


async def both_ways(stub: Any, request: Any) -> None:
    call = stub.Bidi()
    await call.write(request)
    await call.read()
    await call.write(request)
    await call.done_writing()
    while await call.read() is not aio.EOF:
        pass


STORIES = (unary, first_metadata, responses, requests, from_an_iterator, both_ways)


@types.coroutine
def counted(waits: list[int], wait: int, work: Coroutine[Any, Any, None], *, late: bool) -> Iterator[Any]:
    """Run work, count its `waits`, and cancel its task at one of them: as it begins to wait, or, `late`, just as that
    for which it waits has come.
    """
    task, error = asyncio.current_task(), None
    assert task is not None
    while True:
        try:
            awaited = work.throw(error) if error is not None else work.send(None)
        except StopIteration:
            return
        waits[0], error = waits[0] + 1, None
        if waits[0] == wait:
            if late and awaited is not None:
                awaited.add_done_callback(lambda _: task.cancel())
            else:
                task.cancel()
        try:
            yield awaited
        except BaseException as e:
            error = e


async def cancelled_everywhere(here: Site, story: Any, words: dict[str, Any], *, late: bool) -> int:
    """Cancel a call at its first wait, another one at its second, and so on; return how many there were."""
    for wait in range(1, 1000):
        waits = [0]
        work = counted(waits, wait, story(EchoServiceStub(here.channel), EchoRequest(count=2, **words)), late=late)
        # One that ended as its caller was cancelled may be answered all the same, or have failed.
        with suppress(asyncio.CancelledError, aio.AioRpcError):
            await asyncio.create_task(_awaited(work))
        if waits[0] < wait:
            return wait - 1
    raise AssertionError(f"{story.__name__} waits for ever")


async def _awaited(work: Any) -> None:
    await work


@pytest.mark.parametrize("late", [False, True], ids=["as it begins to wait", "as that comes"])
def test_a_call_may_be_cancelled_wherever_its_caller_waits(late: bool) -> None:
    async def story(here: Site) -> None:
        before = await baseline(here)
        for told in STORIES:
            for words in ({"text": "well"}, {"text": "again"}, {"text": "slow", "sleep": 0.001}):
                for _ in range(3):
                    assert await cancelled_everywhere(here, told, words, late=late) >= 1
        assert await left_behind(here, before) == {}

    run(story)


async def cancelled_after(turns: int, here: Site, kind: str, text: str) -> str:
    """Cancel a call after so many turns of the loop and return how it ended."""
    call = begin(EchoServiceStub(here.channel), kind, EchoRequest(text=text, count=2))
    reader = asyncio.create_task(finish(call))
    for _ in range(turns):
        await asyncio.sleep(0)
    call.cancel()
    return await reader


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_may_be_cancelled_after_any_turn_of_the_loop(kind: str) -> None:
    async def story(here: Site) -> None:
        before = await baseline(here)
        for text in ("well", "again"):
            turns, ends = 0, Counter[str]()
            while ends["OK"] < 3:
                ends[await cancelled_after(turns, here, kind, text)] += 1
                turns += 1
                assert turns < 2000, ends
            assert set(ends) <= {"OK", "LEFT", "CANCELLED", "UNAVAILABLE"}, ends
        assert await left_behind(here, before) == {}

    run(story)


async def waiting_in_vain() -> None:
    async with mesh.connect(SERVICE, endpoints=["127.0.0.1:1"], policies=POLICIES) as nobody:
        stub = EchoServiceStub(nobody)
        # Who only waits for metadata is cancelled alone, as in grpc.aio: the call goes on.
        for told in [told for told in STORIES if told is not first_metadata]:
            lonely = [asyncio.create_task(told(stub, EchoRequest(text="well"))) for _ in range(5)]
            await until(lambda: len(nobody._pool._waiters) == 5)
            for task in lonely:
                task.cancel()
            await asyncio.wait(lonely)
            assert len(nobody._pool._waiters) == 0


def test_calls_that_wait_for_an_instance_may_be_cancelled() -> None:
    async def story(here: Site) -> None:
        before = await baseline(here)
        await waiting_in_vain()
        assert await left_behind(here, before) == {}

    run(story)


async def closed_in_mid_call(here: Site, turns: int) -> None:
    async with here.connect() as channel:
        calls = [begin(EchoServiceStub(channel), kind, EchoRequest(sleep=1.0, count=2)) for kind in KINDS]
        for _ in range(turns):
            await asyncio.sleep(0)
    assert {await finish(call) for call in calls} <= {"CANCELLED", "LEFT"}


def twin_closed_in_mid_call(where: list[str], delay: float) -> None:
    twin = _opened(where, POLICIES, Balancer.LEAST_LOADED)
    calls = [begin(EchoServiceStub(twin), kind, EchoRequest(sleep=1.0, count=2)) for kind in KINDS]
    time.sleep(delay)
    twin.close()
    assert "OK" not in [finish_blocking(call) for call in calls]


def test_channels_that_were_opened_and_closed_in_mid_call_leave_nothing() -> None:
    async def story(here: Site) -> None:
        before = await baseline(here)
        for number in range(40):
            await closed_in_mid_call(here, 3 * number)
        where = [str(server.endpoint) for server in here.servers]
        for number in range(40):
            await asyncio.to_thread(twin_closed_in_mid_call, where, number * 0.0002)
        assert await left_behind(here, before) == {}

    run(story)
