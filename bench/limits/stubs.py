"""Raw stubs that do one thing more, beside raw stubs that do not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from threading import Thread
from types import SimpleNamespace
from typing import Any

import grpc
from grpc import aio

from bench.arms.client import Arms, Job, many, stub_of
from bench.limits import Figures, limit, share
from bench.measure import Arm, Finding, alone, cpu_ns
from bench.serving import STREAM
from bench.site import Site
from users.v1 import users_pb2

_ARMS = "bench.limits.stubs:"
_REQUEST = users_pb2.GetUserRequest(id="ada")
_MESSAGES, _STREAMS = 200, 5
_WORK = 600
"""Turns of an empty loop, about as long as our own part of a call takes."""


def _figures(site: Site, arms: str, names: dict[str, str], *, calls: int = 300, rounds: int = 90) -> Figures:
    _, address = site.serve("plain")
    samples = site.compare(_ARMS + arms, {"addresses": [address]}, calls=calls, rounds=rounds, cores="apart")
    return {what: samples.compared(name) for name, what in names.items()}


@limit("timer", "client.unary-stream, client.stream-stream: a loop that waits for a time does more in each turn")
def timer(site: Site) -> Figures:
    """A raw stream beside a timer."""
    return _figures(
        site, "timed", {"timer": "a raw stream beside one call_later(3600), of a raw stream"}, calls=4000, rounds=54
    )


@asynccontextmanager
async def timed(job: Job) -> AsyncIterator[Arms]:
    """A raw stream of responses, by message, and the same while the loop has one timer."""
    async with aio.insecure_channel(job["addresses"][0]) as raw:
        start: Any = raw.unary_stream(STREAM)

        async def run(messages: int) -> None:
            left = iter(range(max(_STREAMS, messages // _MESSAGES)))

            async def some() -> None:
                for _ in left:
                    async for _message in start(str(_MESSAGES).encode(), timeout=30):
                        pass

            await asyncio.gather(*(some() for _ in range(_STREAMS)))

        async def beside(messages: int) -> None:
            waiting = asyncio.get_running_loop().call_later(3600, print)
            await run(messages)
            waiting.cancel()

        yield Arm(run), {"timer": Arm(beside)}


@limit("traceparent", "client.traced: what a header costs that is another in each call")
def traceparent(site: Site) -> Figures:
    """A raw stub that sends one."""
    names = {"same": "a raw stub that sends one traceparent with all calls", "new": "… a new one with each call"}
    return _figures(site, "carried", names)


@asynccontextmanager
async def carried(job: Job) -> AsyncIterator[Arms]:
    """A raw stub, and the same with metadata."""
    async with aio.insecure_channel(job["addresses"][0]) as raw:
        get = stub_of(raw).GetUser
        always = aio.Metadata(("traceparent", _drawn()))

        def carrying(metadata: Callable[[], aio.Metadata]) -> Arm:
            def call(request: Any, timeout: float) -> Any:
                return get(request, timeout=timeout, metadata=metadata())

            return Arm(many(SimpleNamespace(GetUser=call)))

        arms = {"same": carrying(lambda: always), "new": carrying(lambda: aio.Metadata(("traceparent", _drawn())))}
        yield Arm(many(stub_of(raw))), arms


def _drawn() -> str:
    return f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-02"


def _around(get: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return what makes the same call from a plain function, and from one that works for a moment."""

    def function(request: Any, timeout: float) -> Any:
        return get(request, timeout=timeout)

    def work(request: Any, timeout: float) -> Any:
        for _ in range(_WORK):
            pass
        return get(request, timeout=timeout)

    return {"function": function, "work": work}


_AROUND = {"function": "a raw stub behind a plain function", "work": f"… behind one that counts to {_WORK}"}


@limit("python", "client.one, client.three: a few µs of Python before each call, 50 in flight")
def python(site: Site) -> Figures:
    """A raw stub behind a function."""
    work = _around(lambda request, timeout: None)["work"]
    spent = []
    for _ in range(share(site, 30)):
        begun = cpu_ns()
        for _ in range(1000):
            work(_REQUEST, 10)
        spent.append((cpu_ns() - begun) / 1e6)
    counting = {f"counting to {_WORK}, in a loop of its own": alone(spent, unit="µs CPU")}
    return {**counting, **_figures(site, "many_around", _AROUND)}


@asynccontextmanager
async def many_around(job: Job) -> AsyncIterator[Arms]:
    """A raw stub, and the same behind functions."""
    async with aio.insecure_channel(job["addresses"][0]) as raw:
        around = _around(stub_of(raw).GetUser)
        arms = {name: Arm(many(SimpleNamespace(GetUser=call))) for name, call in around.items()}
        yield Arm(many(stub_of(raw))), arms


@limit("threads", "client.blocking-threads: the same before blocking calls, from one thread and from eight")
def threads(site: Site) -> Figures:
    """Blocking stubs behind a function, on one core with their server."""
    _, address = site.serve("plain")
    found: dict[str, Finding] = {}
    for number, who in ((1, "one thread"), (8, "eight threads")):
        job = {"addresses": [address], "threads": number}
        samples = site.compare(f"{_ARMS}threads_around", job, calls=320, rounds=90, cores="one")
        found |= {f"{who}: {what}": samples.compared(name) for name, what in _AROUND.items()}
    return found


@asynccontextmanager
async def threads_around(job: Job) -> AsyncIterator[Arms]:
    """A raw blocking stub, and the same behind functions."""

    def by_threads(call: Callable[..., Any]) -> Arm:
        def some(number: int) -> None:
            for _ in range(number):
                call(_REQUEST, timeout=10)

        def run(number: int) -> None:
            callers = [Thread(target=some, args=(number // job["threads"],)) for _ in range(job["threads"])]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()

        return Arm(run)

    with grpc.insecure_channel(job["addresses"][0]) as raw:
        get = stub_of(raw).GetUser
        yield by_threads(get), {name: by_threads(call) for name, call in _around(get).items()}
