"""Our channel beside a sidecar and beside gRPC's own xDS client, which our control plane feeds.

The servers answer with a constant, so that the road shows. CPU is that of all processes: caller, whoever is between,
and the three servers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench import openloop, sidecar
from bench.measure import Finding, compare
from bench.openloop import Latencies
from bench.row import Spec, measures
from bench.site import Site

_ARMS = "bench.arms.sidecar:"
_ENVOY = "a raw grpc.aio stub through an Envoy beside it"
_ROADS = {"mesh": "our channel", "proxyless": "`xds:///`", "envoy": "through Envoy"}
_LIMIT = (
    "Nothing of ours is in the way of gRPC's own client: the control plane takes none of the CPU (the note on "
    "sidecar.cpu has the shares), and of both roads most is the three servers', which are the same processes."
)
_RATE = 300
_BLOCKS = 20
_ROUNDS = 96


def _job(site: Site) -> dict[str, Any]:
    servers = [site.serve("plain", name=f"server-{number}") for number in range(3)]
    addresses = [address for _, address in servers]
    envoy, at = sidecar.start(site, addresses)
    plane = site.python("-m", "bench.sidecar", *addresses, name="plane")
    return {
        "addresses": addresses,
        "pids": [process.pid for process, _ in servers],
        "sidecar": at,
        "sidecar_pid": envoy.pid,
        "plane": plane.line(),
        "plane_pid": plane.pid,
    }


@measures(
    Spec(
        "sidecar.proxyless",
        "three instances, 50 calls in flight: `xds:///` fed by our control plane, CPU of all processes",
        "our own channel",
        goal=1.05,
        limit=_LIMIT,
    ),
    Spec("sidecar.cpu", "three instances, 50 calls in flight: our channel, CPU of all processes", _ENVOY),
)
def cpu(site: Site) -> Mapping[str, Finding]:
    """CPU per call."""
    job = _job(site)
    samples = site.compare(f"{_ARMS}spent", job, calls=200, rounds=_ROUNDS, cores="apart")
    ours = [(a + b) / 2 for a, b in zip(samples.baseline, samples.again, strict=True)]
    found = compare(ours, samples.others["envoy"], unit="µs CPU", parts=samples.parts)
    proxyless = samples.compared("proxyless")
    found.control = proxyless.control
    shares = site.child({"call": f"{_ARMS}shares", "job": {**job, "calls": site.calls(400)}}, name="shares")
    found.facts["shares_us"] = shares
    found.notes = _whose(shares)
    return {"sidecar.proxyless": proxyless, "sidecar.cpu": found}


def _whose(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Return who takes the CPU on each road, and what our channel has instead of Envoy."""
    told = [
        f"{called}: {', '.join(f'{who} {us:.0f}' for who, us in shares[road].items())}"
        for road, called in _ROADS.items()
    ]
    ours, beside = shares["mesh"], shares["envoy"]
    more = {who: round(ours[who] - beside[who]) for who in ("servers", "caller")}
    return (
        f"whose CPU it is, in µs: {'; '.join(told)}. The servers, in Python, are "
        f"{100 * ours['servers'] / sum(ours.values()):.0f} % of ours; instead of Envoy's {beside['Envoy']:.0f} µs our "
        f"channel has {more['servers']:+d} in the servers and {more['caller']:+d} in the caller"
    )


@measures(Spec("sidecar.throughput", "three instances, 50 calls in flight: calls a second", _ENVOY, lower=False))
def throughput(site: Site) -> Finding:
    """How many calls one caller can make."""
    job = {**_job(site), "rounds": max(2, round(_BLOCKS * min(1.0, site.scale))), "calls": site.calls(800)}
    told = site.child({"call": f"{_ARMS}throughput", "job": job}, name="throughput")
    found = compare(told["mesh"], told["envoy"], unit="calls/s")
    found.facts["proxyless_calls_per_s"] = statistics.median(told["proxyless"])
    return found


@measures(Spec("sidecar.latency", f"three instances, {_RATE} calls a second: median latency", _ENVOY, noise=0.1))
def latency(site: Site) -> Finding:
    """How long callers wait."""
    job = {**_job(site), "rate": 3 * _RATE, "seconds": 12 * min(1.0, site.scale)}
    told = site.child({"call": f"{_ARMS}latency", "job": job}, name="latency")
    read = {name: Latencies.of_json(latencies) for name, latencies in told.items()}
    found = openloop.compared(read["mesh"], read["envoy"])
    found.facts |= {f"proxyless_{key}": read["proxyless"].facts()[key] for key in ("p50_ms", "p99_ms", "failed")}
    return found
