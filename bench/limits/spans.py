"""What OpenTelemetry's SDK takes for the spans of a call, and for sending them."""

from __future__ import annotations

import os
import time
from typing import Any

from bench import cores
from bench.limits import Figures, limit, share
from bench.measure import alone
from bench.site import Site
from support.collector import Collector

_CALLS = 40
"""Calls whose spans are sent together."""
_ROUNDS = 60


@limit("spans", "client.traced: the SDK makes the two spans of a call that is taken, and sends those of 40 calls")
def spans(site: Site) -> Figures:
    """A process that does nothing else."""
    with Collector() as collector:
        job = {"collector": collector.address, "rounds": share(site, _ROUNDS)}
        told = site.child({"call": "bench.limits.spans:made_and_sent", "job": job}, name="spans")
    return {
        "two spans made and ended by the SDK, a call": alone(told["made"], unit="µs CPU"),
        f"spans of {_CALLS} calls sent together, a call": alone(told["sent"], unit="µs CPU"),
    }


def made_and_sent(job: dict[str, Any]) -> dict[str, list[float]]:
    """Return µs of CPU per call, for making and for sending."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, set_span_in_context

    cores.part({os.getpid()}, [])
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"http://{job['collector']}", insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    tracer = provider.get_tracer("bench")
    about: dict[str, str | int] = {"rpc.system.name": "grpc", "rpc.method": "users.v1.UserService/GetUser"}
    more = {**about, "server.address": "127.0.0.1", "server.port": 50051, "mesh.attempt": 1}
    found: dict[str, list[float]] = {"made": [], "sent": []}
    for _ in range(job["rounds"] + 2):
        begun = time.process_time_ns()
        for _ in range(_CALLS):
            call = tracer.start_span("users.v1.UserService/GetUser", kind=SpanKind.INTERNAL, attributes=about)
            within = set_span_in_context(call)
            attempt = tracer.start_span("users.v1.UserService/GetUser", within, SpanKind.CLIENT, more)
            for span in (attempt, call):
                span.set_attribute("rpc.response.status_code", "OK")
                span.end()
        made = time.process_time_ns()
        provider.force_flush()
        found["made"].append((made - begun) / _CALLS / 1000)
        found["sent"].append((time.process_time_ns() - made) / _CALLS / 1000)
    provider.shutdown()
    return {name: values[2:] for name, values in found.items()}
