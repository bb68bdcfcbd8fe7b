"""Spans of calls, attempts and handlers, by OpenTelemetry's RPC conventions. Imported by `tracing` once they are taken.

A call is one INTERNAL span; each attempt under it is a CLIENT span, so that a service map counts what crossed the
wire and not what was asked for. A handler is a SERVER span, current while it runs, and its calls become its children.
Names and attributes are those of semantic conventions 1.44 (rpc.system.name, a fully qualified rpc.method,
rpc.response.status_code); no request content, no metadata. How spans leave the process is `mesh.telemetry.export`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from copy import copy
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.sampling import SamplingResult

_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

# https://opentelemetry.io/docs/specs/semconv/rpc/grpc: on a server only these are the server's fault; on a client, all
# but OK are errors.
_SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

# Health checks and reflection: probes every few seconds would drown what people did.
_PLUMBING = ("grpc.health.", "grpc.reflection.")

Metadata = Iterable[tuple[str, str | bytes]]

_tracer: Tracer = trace.NoOpTracer()
_NOTHING = context.Context()
_LOW = (1 << 64) - 1  # the half of a trace's id that ratios go by
_INTERNAL = SpanKind.INTERNAL  # by a name of our own: Python looks a member of an enumeration up at the price of a call
_draws: Draws | None = None
"""Decides before there is a span; None where the tracer is not of OpenTelemetry's own SDK."""


def is_provided() -> bool:
    """Whether the process has a tracer provider of its own."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def provide(made: trace.TracerProvider) -> None:
    """Make a provider the process's own."""
    trace.set_tracer_provider(made)


def use(made: trace.TracerProvider | None) -> bool:
    """Take spans from here on with this provider, by default the process's own; return False if there is none."""
    global _tracer, _draws
    used = made if made is not None else trace.get_tracer_provider() if is_provided() else None
    if used is not None:
        _tracer = used.get_tracer("mesh", schema_url=_SCHEMA)
        sdk = sys.modules.get("opentelemetry.sdk.trace")
        _draws = Draws(_tracer) if sdk is not None and isinstance(_tracer, sdk.Tracer) else None
    return used is not None


def begin_call(service: str, method: str, metadata: Any) -> tuple[Span | None, Any]:
    """Begin a call: return its span if it is taken, or else the metadata that all of its attempts are to carry."""
    around = context.get_current()
    if _draws is not None and not around and _is_usual(propagate.get_global_textmap()):
        return _draws.begin_call(service, method, metadata)
    span = start_call(service, method)
    return (span, metadata) if span.is_recording() else (None, inject(span, metadata or ()))


class Draws:
    """The sampling of calls that are made on behalf of nothing that is traced. Most are not taken, so that is found out
    before there is a span: it halves the price.
    """

    def __init__(self, tracer: Any) -> None:
        from opentelemetry.sdk.trace.sampling import Decision

        self._tracer = tracer
        self._should_sample = tracer.sampler.should_sample
        self._trace_id, self._span_id = tracer.id_generator.generate_trace_id, tracer.id_generator.generate_span_id
        is_random = getattr(tracer.id_generator, "is_trace_id_random", lambda: False)  # since 1.40
        # https://www.w3.org/TR/trace-context-2/#random-trace-id-flag
        self._not_taken = "00-%032x-%016x-02" if is_random() else "00-%032x-%016x-00"
        self._asked_below = _bound(tracer.sampler)
        self._drop = Decision.DROP

    def begin_call(self, service: str, method: str, metadata: Any) -> tuple[Span | None, Any]:
        """Do what the function of that name does."""
        trace_id = self._trace_id()
        if trace_id & _LOW < self._asked_below:
            name, attributes = _name(service, method)
            said = self._should_sample(_NOTHING, trace_id, name, _INTERNAL, attributes, ())
            if said.decision is not self._drop or said.trace_state:
                tracer = copy(self._tracer)
                tracer.sampler = tracer.id_generator = _Drawn(said, trace_id, tracer.id_generator)
                return tracer.start_span(name, context=_NOTHING, kind=_INTERNAL, attributes=attributes), metadata
        entry = (_PARENT, self._not_taken % (trace_id, self._span_id()))
        return None, _joined(metadata, [entry]) if metadata else [entry]


def _bound(sampler: Any) -> int:
    """Return from which on the lower half of a trace's id says that a call on behalf of nothing is not taken: the SDK's
    ratio goes by nothing else, and need not be asked to say no. All other samplers are asked about every call.
    """
    from opentelemetry.sdk.trace.sampling import ParentBased, ParentBasedTraceIdRatio, TraceIdRatioBased

    root = getattr(sampler, "_root", None) if type(sampler) in (ParentBased, ParentBasedTraceIdRatio) else sampler
    return root.bound if type(root) is TraceIdRatioBased else _LOW + 1


class _Drawn:
    """What a tracer asks its sampler and its ids for, when both have been asked."""

    def __init__(self, said: SamplingResult, trace_id: int, ids: Any) -> None:
        self._said = said
        self._trace_id = trace_id
        self._ids = ids

    def should_sample(self, *_: object, **__: object) -> SamplingResult:
        return self._said

    def generate_trace_id(self) -> int:
        return self._trace_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ids, name)


def start_call(service: str, method: str) -> Span:
    """Start the span of a call: all attempts and the pauses between them. Its parent is the current span."""
    name, attributes = _name(service, method)
    return _tracer.start_span(name, kind=SpanKind.INTERNAL, attributes=attributes)


def start_attempt(parent: Span, service: str, method: str, endpoint: str, number: int) -> Span:
    """Start the span of an attempt under its call's; `endpoint` is "host:port", `number` counts from 1."""
    if not parent.is_recording():
        return parent  # not sampled: its context is all that an attempt has to carry
    name, attributes = _name(service, method)
    host, _, port = endpoint.rpartition(":")
    attributes = {**attributes, "server.address": host.strip("[]") or endpoint, "mesh.attempt": number}
    if port.isdecimal():
        attributes["server.port"] = int(port)
    return _tracer.start_span(
        name, context=trace.set_span_in_context(parent), kind=SpanKind.CLIENT, attributes=attributes
    )


def end(span: Span, code: str) -> None:
    """End a span with the name of a status code, e.g. "UNAVAILABLE". Ending it twice is harmless."""
    if not span.is_recording():
        return
    span.set_attribute("rpc.response.status_code", code)
    is_server = getattr(span, "kind", None) is SpanKind.SERVER
    if code in _SERVER_ERRORS if is_server else code != "OK":
        span.set_attribute("error.type", code)
        span.set_status(StatusCode.ERROR)  # no description: details may quote a request
    span.end()


def inject(span: Span, metadata: Metadata) -> list[tuple[str, str | bytes]]:
    """Return the metadata with the span's context in it (W3C traceparent, or as OTEL_PROPAGATORS says)."""
    ours: list[tuple[str, str | bytes]] = []
    told = span.get_span_context()
    # What OpenTelemetry does unless told otherwise, where there is but an id to hand on: in a third of its time, which
    # every call pays, sampled or not.
    if _is_usual(propagate.get_global_textmap()) and told.is_valid and not told.trace_state and not baggage.get_all():
        ours.append((_PARENT, f"00-{told.trace_id:032x}-{told.span_id:016x}-{told.trace_flags:02x}"))
    else:
        propagate.inject(ours, context=trace.set_span_in_context(span), setter=_PAIRS)
    return _joined(metadata, ours) if metadata else ours


def _joined(theirs: Metadata, ours: list[tuple[str, str | bytes]]) -> list[tuple[str, str | bytes]]:
    names = {name for name, _ in ours}
    return [pair for pair in theirs if pair[0] not in names] + ours


def start_server(service: str, method: str, metadata: Metadata) -> ServerSpan:
    """Return the span of a handler, to be used as a context manager: current inside, child of what the caller sent."""
    return ServerSpan(service, method, metadata)


class ServerSpan:
    """The span of a handler. `with` makes it current; `end` gives its code; leaving ends it if nobody did."""

    def __init__(self, service: str, method: str, metadata: Metadata) -> None:
        name, attributes = _name(service, method)
        carrier = [(key.lower(), value) for key, value in metadata if isinstance(value, str)]
        self._parent = propagate.extract(carrier, context=context.get_current(), getter=_PAIRS)
        if service.startswith(_PLUMBING):
            self._span: Span = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
        else:
            self._span = _tracer.start_span(name, context=self._parent, kind=SpanKind.SERVER, attributes=attributes)
        self._inside = self._parent
        self._token: Any = None

    def __enter__(self) -> Span:
        self._inside = trace.set_span_in_context(self._span, self._parent)
        self._token = context.attach(self._inside)
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if context.get_current() is self._inside:  # or another task closes a generator's
            context.detach(self._token)
        end(self._span, "OK" if kind is None else "UNKNOWN" if issubclass(kind, Exception) else "CANCELLED")


class _Pairs(Setter[list[tuple[str, str | bytes]]], Getter[list[tuple[str, str]]]):
    """Metadata as a carrier."""

    def set(self, carrier: list[tuple[str, str | bytes]], key: str, value: str) -> None:
        carrier.append((key.lower(), value))

    def get(self, carrier: list[tuple[str, str]], key: str) -> list[str] | None:
        return [value for name, value in carrier if name == key.lower()] or None

    def keys(self, carrier: list[tuple[str, str]]) -> list[str]:
        return [name for name, _ in carrier]


_PAIRS = _Pairs()
_PARENT = "traceparent"  # https://www.w3.org/TR/trace-context/#traceparent-header


@lru_cache(maxsize=8)
def _is_usual(propagator: TextMapPropagator) -> bool:
    """Whether it is W3C's trace context and baggage, the default, and nothing else."""
    return propagator.fields == {_PARENT, "tracestate", "baggage"}


@lru_cache(maxsize=1024)  # methods of the contracts known to a process; more than that and a miss costs a microsecond
def _name(service: str, method: str) -> tuple[str, dict[str, Any]]:
    """Return a span's name and the attributes every span of the method has. Accepts "Get" and "/pkg.Service/Get"."""
    full = f"{service}/{method.rpartition('/')[2]}"
    return full, {"rpc.system.name": "grpc", "rpc.method": full}
