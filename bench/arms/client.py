"""The client's arms: a stub on gRPC's own channel, and the same stub on the mesh's."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

import mesh
from bench import openloop
from bench.arms.assembled import RetryByHand, assembled
from bench.measure import Arm
from bench.serving import ECHO, STREAM
from mesh import blocking
from mesh.contract.policies import policies_of
from mesh.policy import HedgingPolicy, MethodPolicy
from users.v1 import users_pb2, users_pb2_grpc

SERVICE = "users.v1.UserService"
AT_ONCE = 50
_REQUEST = users_pb2.GetUserRequest(id="ada")
_MESSAGES = 200
"""In one stream, and every stream is made anew: its start and its end are part of the cost."""
_STREAMS = 5
_WARM = 200
"""Calls before latency is measured."""
_ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

Job = Mapping[str, Any]
Arms = tuple[Arm, Mapping[str, Arm]]


def many(stub: Any, at_once: int = AT_ONCE) -> Callable[[int], Any]:
    """Return what makes calls of GetUser, so many in flight at any time."""

    async def run(calls: int) -> None:
        left = iter(range(calls))

        async def some() -> None:
            for _ in left:
                await stub.GetUser(_REQUEST, timeout=10)

        await asyncio.gather(*(some() for _ in range(at_once)))

    return run


def stub_of(channel: Any) -> Any:
    """Return the generated stub."""
    return users_pb2_grpc.UserServiceStub(channel)


def plain() -> dict[str, MethodPolicy]:
    """Return the contract's policies without hedging: what it is compared with has none."""
    return {path: policy._replace(hedging=HedgingPolicy()) for path, policy in policies_of(SERVICE).items()}


def connect(addresses: Sequence[str]) -> Any:
    """Return our channel: round robin, retry, breaker, deadline and metrics."""
    return mesh.connect(SERVICE, endpoints=addresses, policies=plain())


def core_round_robin(addresses: Sequence[str]) -> grpc.aio.Channel:
    """Return a channel on which gRPC itself takes the addresses in turns."""
    return grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=[("grpc.service_config", _ROUND_ROBIN)])


async def _ready(channel: Any) -> Any:
    """Return the channel once it knows all of its instances."""
    await channel.channel_ready()
    await asyncio.sleep(0.3)
    return channel


@asynccontextmanager
async def control(job: Job) -> AsyncIterator[Arms]:
    """A raw stub and nothing else."""
    async with grpc.aio.insecure_channel(job["addresses"][0]) as raw:
        yield Arm(many(stub_of(raw))), {}


@asynccontextmanager
async def one(job: Job) -> AsyncIterator[Arms]:
    """A raw stub, and ours on the same address."""
    address = job["addresses"][0]
    async with grpc.aio.insecure_channel(address) as raw, connect([address]) as ours:
        await _ready(ours)
        yield Arm(many(stub_of(raw))), {"mesh": Arm(many(stub_of(ours)))}


@asynccontextmanager
async def hedged(job: Job) -> AsyncIterator[Arms]:
    """Our stub without hedging, and with it."""
    addresses = job["addresses"]
    async with connect(addresses) as without, mesh.connect(SERVICE, endpoints=addresses) as ours:
        await _ready(without)
        await _ready(ours)
        yield Arm(many(stub_of(without))), {"mesh": Arm(many(stub_of(ours)))}


@asynccontextmanager
async def three(job: Job) -> AsyncIterator[Arms]:
    """gRPC's own round robin, and ours over the same three."""
    async with core_round_robin(job["addresses"]) as core, connect(job["addresses"]) as ours:
        await _ready(ours)
        yield Arm(many(stub_of(core))), {"mesh": Arm(many(stub_of(ours)))}


@asynccontextmanager
async def against_assembled(job: Job) -> AsyncIterator[Arms]:
    """The same features, from interceptors on gRPC's own round robin, with tenacity and, where asked, `by_hand`; and
    ours.
    """
    addresses = job["addresses"]
    async with (
        assembled(addresses) as theirs,
        assembled(addresses, RetryByHand) as by_hand,
        connect(addresses) as ours,
    ):
        await _ready(ours)
        others = {"mesh": ours, "by hand": by_hand} if job["by_hand"] else {"mesh": ours}
        yield Arm(many(stub_of(theirs))), {name: Arm(many(stub_of(channel))) for name, channel in others.items()}


@asynccontextmanager
async def traced(job: Job) -> AsyncIterator[Arms]:
    """A raw stub without tracing, and ours with spans for one call in a hundred, sent to a collector.

    They are sent within the block that made them, not seconds later: sending would fall on the raw stub's blocks too.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(0.01))
    exporter = OTLPSpanExporter(f"http://{job['collector']}", insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    address = job["addresses"][0]
    async with grpc.aio.insecure_channel(address) as raw, connect([address]) as ours:
        await _ready(ours)
        make = many(stub_of(ours))

        async def run(calls: int) -> None:
            await make(calls)
            await asyncio.to_thread(provider.force_flush)

        yield Arm(many(stub_of(raw))), {"mesh": Arm(run)}


@asynccontextmanager
async def unary_stream(job: Job) -> AsyncIterator[Arms]:
    """Streams of responses, by message."""

    def reads(channel: Any) -> Callable[[int], Any]:
        start = channel.unary_stream(STREAM)

        async def one_stream() -> None:
            async for _ in start(str(_MESSAGES).encode(), timeout=30):
                pass

        return _streams(one_stream)

    address = job["addresses"][0]
    async with grpc.aio.insecure_channel(address) as raw, connect([address]) as ours:
        await _ready(ours)
        yield Arm(reads(raw)), {"mesh": Arm(reads(ours))}


@asynccontextmanager
async def stream_stream(job: Job) -> AsyncIterator[Arms]:
    """Streams both ways, by message sent and received."""

    def talks(channel: Any) -> Callable[[int], Any]:
        start = channel.stream_stream(ECHO)

        async def words() -> AsyncIterator[bytes]:
            for _ in range(_MESSAGES):
                yield b"0123456789abcdef"

        async def one_stream() -> None:
            async for _ in start(words(), timeout=30):
                pass

        return _streams(one_stream)

    address = job["addresses"][0]
    async with grpc.aio.insecure_channel(address) as raw, connect([address]) as ours:
        await _ready(ours)
        yield Arm(talks(raw)), {"mesh": Arm(talks(ours))}


def _streams(one_stream: Callable[[], Any]) -> Callable[[int], Any]:
    async def run(messages: int) -> None:
        left = iter(range(max(_STREAMS, messages // _MESSAGES)))

        async def some() -> None:
            for _ in left:
                await one_stream()

        await asyncio.gather(*(some() for _ in range(_STREAMS)))

    return run


@asynccontextmanager
async def threads(job: Job) -> AsyncIterator[Arms]:
    """A raw blocking stub, and our blocking twin: from one thread or several."""

    def calls(channel: Any) -> Callable[[int], None]:
        get = stub_of(channel).GetUser

        def some(number: int) -> None:
            for _ in range(number):
                get(_REQUEST, timeout=10)

        def run(number: int) -> None:
            callers = [threading.Thread(target=some, args=(number // job["threads"],)) for _ in range(job["threads"])]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()

        return run

    address = job["addresses"][0]
    with (
        grpc.insecure_channel(address) as raw,
        blocking.connect(SERVICE, endpoints=[address], policies=plain()) as ours,
    ):
        yield Arm(calls(raw)), {"mesh": Arm(calls(ours))}


def alone(job: Job) -> dict[str, Any]:
    """Measure latency, one call at a time and no other in flight: of a raw stub or of ours, whatever the arm is."""
    return openloop.run(_alone(job))


async def _alone(job: Job) -> dict[str, Any]:
    address = job["addresses"][0]
    async with connect([address]) if job["arm"] == "mesh" else grpc.aio.insecure_channel(address) as channel:
        get = stub_of(await _ready(channel)).GetUser
        for _ in range(_WARM):
            await get(_REQUEST, timeout=10)
        lead = job["begin"] - time.perf_counter()
        if lead < 0:
            raise RuntimeError(f"it came {-lead:.1f} s too late to its turn: is this machine busy?")
        await asyncio.sleep(lead)
        calls = {"": lambda: get(_REQUEST, timeout=10)}
        found = await openloop.drive(calls, rate=job["rate"], seconds=job["seconds"], warm=0)
    return found[""].to_json()
