"""The client's stack with everything on (round robin, retry, breaker, deadline, metrics) beside what it stands for."""

from __future__ import annotations

import json
import time
from typing import Any

from bench import openloop
from bench.cores import Cores
from bench.measure import Finding, Samples, compare
from bench.openloop import Latencies
from bench.row import Spec, measures
from bench.site import Site
from support.collector import Collector

_ARMS = "bench.arms.client:"
_ROUNDS = 108
_RAW = "a raw grpc.aio stub on its address"
_PYTHON = (
    "What ours does for a call is Python, and no part of it stands out: a raw stub behind a function that counts to "
    "600, 5 µs in a loop of its own, costs 1.03 (1.00 to 1.06), behind an empty one 1.00 (0.98 to 1.03) (`python -m "
    "bench.limits python`)."
)
_TIMER = (
    "A loop that waits for a time does more in each turn: a raw stream beside one timer of asyncio's, "
    "`call_later(3600)`, costs 1.04 (1.01 to 1.09) (`python -m bench.limits timer`). Ours has none, but any of the "
    "caller's is as dear."
)
_THREADS = (
    "Any Python before a call is as dear: a raw stub behind a function that counts to 600, 5 µs in a loop of its own, "
    "takes 1.03 (1.03 to 1.04) in eight threads, behind an empty one 1.00 (1.00 to 1.01; `python -m bench.limits "
    "threads`)."
)
_TRACED = (
    "A call that is not taken carries a traceparent all the same: a raw stub that makes a new one for each call costs "
    "1.04 (1.00 to 1.07) of one that sends none, and with the same one each time 1.02 (1.00 to 1.06) (`python -m "
    "bench.limits traceparent`); the rest of the call is what client.one says. The SDK makes the two spans of a call "
    "that is taken in 30 µs and sends those of 40 calls in 51 µs each (`python -m bench.limits spans`): together 0.8 "
    "µs on every call."
)
_ALONE = 100
"""Calls a second of `client.alone`."""
_LEAD = 3.0
"""Seconds that its processes have to come to their first call."""


def _compared(site: Site, arms: str, **job: Any) -> Finding:
    return _samples(site, arms, **job).compared("mesh")


def _samples(
    site: Site,
    arms: str,
    *,
    servers: int = 1,
    calls: int = 300,
    rounds: int = _ROUNDS,
    cores: Cores = "apart",
    **job: Any,
) -> Samples:
    addresses = [site.serve("plain", name=f"server-{number}")[1] for number in range(servers)]
    job["addresses"] = addresses
    return site.compare(_ARMS + arms, job, calls=calls, rounds=rounds, cores=cores)


@measures(
    Spec(
        "client.one",
        "one instance, 50 calls in flight",
        _RAW,
        goal=1.05,
        moonshot=1.0,
        quick=True,
        noise=0.05,
        limit=_PYTHON,
    )
)
def one(site: Site) -> Finding:
    """Unary calls to one instance."""
    return _compared(site, "one")


@measures(
    Spec("client.alone", "one instance, one call at a time: median latency", _RAW, goal=1.05, noise=0.08, limit=_PYTHON)
)
def alone(site: Site) -> Finding:
    """Latency of a call that no other is in flight with, from a process that makes no other calls: three arms in one
    process keep gRPC's code warm in the caches for each other, and a raw stub alone in its own takes a fifth longer.
    """
    _, address = site.serve("plain")
    job = {"addresses": [address], "rate": _ALONE, "seconds": 3 * min(1.0, site.scale)}
    found = {name: Latencies() for name in ("raw", "mesh", "again")}
    # Many processes: where things lie in memory costs or saves one some per cent for all of its life.
    processes = (6 if site.quick else 12) if site.scale == 1.0 else 1
    for number in range(processes):
        begin, children = time.perf_counter() + _LEAD, {}
        # All call in the same seconds, by turns; who comes after whom changes.
        for place, name in enumerate(list(found)[:: 1 if number % 2 else -1]):
            own = {"arm": name, "begin": begin + place / (len(found) * _ALONE)}
            order = json.dumps({"call": f"{_ARMS}alone", "job": job | own})
            children[name] = site.python("-m", "bench.child", order, name=f"alone-{name}-{number}")
        for name, child in children.items():
            found[name].extend(Latencies.of_json(json.loads(child.line())))
            site.stop(child)
    finding = openloop.compared(found["mesh"], found["raw"], found["again"], processes=processes)
    finding.notes = (
        "each alone in its own process; beside two raw stubs in one process, which keep gRPC's code warm in the caches "
        "for each other, the same was 1.04 to 1.08 (six runs, 2026-11-22)"
    )
    return finding


@measures(
    Spec(
        "client.three",
        "three instances in turns, 50 calls in flight",
        "gRPC's own round_robin over the same three",
        goal=1.10,
        moonshot=1.0,
        quick=True,
        noise=0.05,
        limit=_PYTHON,
    )
)
def three(site: Site) -> Finding:
    """Unary calls to three instances."""
    return _compared(site, "three", servers=3)


@measures(Spec("client.hedged", "three instances, 50 calls in flight, hedging on", "the same with hedging off"))
def hedged(site: Site) -> Finding:
    """What it costs to be ready for a second attempt; hardly one is made."""
    return _compared(site, "hedged", servers=3, rounds=150)


@measures(
    Spec(
        "client.assembled",
        "three instances, 50 calls in flight",
        "deadline, metrics, retry (tenacity) and breaker as grpc.aio interceptors on gRPC's round_robin",
        goal=0.95,
        quick=True,
        noise=0.05,
    )
)
def against_assembled(site: Site) -> Finding:
    """The same features, put together by hand."""
    samples = _samples(site, "against_assembled", servers=3, by_hand=not site.quick)
    found = samples.compared("mesh")
    if site.quick:
        return found
    by_hand = compare(samples.others["mesh"], samples.others["by hand"], unit=samples.unit, parts=samples.parts)
    found.facts["ratio_without_tenacity"] = by_hand.ratio
    found.notes = (
        f"tenacity stands in the way of every call, as its users have it: beside the same without it on calls that "
        f"succeed at once the ratio is {by_hand.ratio:.2f}"
    )
    return found


@measures(
    Spec("client.blocking", "the blocking twin, one thread", "a raw blocking grpc stub", goal=1.05, quick=True),
)
def blocking(site: Site) -> Finding:
    """Blocking calls from one thread."""
    return _compared(site, "threads", threads=1, calls=200, cores="one")


@measures(
    Spec(
        "client.blocking-threads",
        "the blocking twin, eight threads",
        "a raw blocking grpc stub",
        goal=1.05,
        limit=_THREADS,
    )
)
def blocking_threads(site: Site) -> Finding:
    """Blocking calls from several threads."""
    found = _compared(site, "threads", threads=8, calls=320, cores="one")
    free = _compared(site, "threads", threads=8, calls=320, cores="any")
    found.facts |= {"ratio_on_all_cores": free.ratio, "low_on_all_cores": free.low, "high_on_all_cores": free.high}
    found.notes = (
        f"threads and server on one core; on all cores, where it is luck which of them run at once, {free.ratio:.2f} "
        f"({free.low:.2f} to {free.high:.2f}, A/A {free.control:.2f})"
    )
    return found


@measures(
    Spec("client.unary-stream", "a stream of 200 responses, per message", f"{_RAW}", goal=1.05, limit=_TIMER),
)
def unary_stream(site: Site) -> Finding:
    """Streams of responses."""
    return _compared(site, "unary_stream", calls=4000, rounds=54)


@measures(
    Spec("client.stream-stream", "200 messages each way, per pair", f"{_RAW}", goal=1.05, limit=_TIMER),
)
def stream_stream(site: Site) -> Finding:
    """Streams both ways."""
    return _compared(site, "stream_stream", calls=4000, rounds=54)


@measures(
    Spec(
        "client.traced",
        "one instance, 50 calls in flight, 1 % of them traced",
        f"{_RAW}, not traced",
        goal=1.10,
        limit=_TRACED,
    )
)
def traced(site: Site) -> Finding:
    """Unary calls with tracing sampled."""
    with Collector() as collector:
        # Blocks so long that a batch of spans is one: each block sends its own.
        found = _compared(site, "traced", calls=4000, rounds=18, collector=collector.address)
        found.facts["spans"] = len(collector.spans)
    if not collector.spans and site.scale == 1.0:
        raise RuntimeError("no span came to the collector: what was measured is not tracing")
    found.notes = f"with sending them: {len(collector.spans):,} spans came to the collector"
    return found
