"""What is sent along with a call is what OpenTelemetry itself would send, also where we write it ourselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mesh.telemetry import spans


def span(*, sampled: bool = False, state: TraceState | None = None, trace_id: int = 0x123) -> NonRecordingSpan:
    return NonRecordingSpan(SpanContext(trace_id, 0xABC, False, TraceFlags(int(sampled)), state))


@contextmanager
def carrying(name: str, value: str) -> Iterator[None]:
    token = context.attach(baggage.set_baggage(name, value))
    yield
    context.detach(token)


@contextmanager
def propagated_by(propagator: TextMapPropagator) -> Iterator[None]:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(propagator)
    yield
    propagate.set_global_textmap(before)


def theirs(of: NonRecordingSpan) -> dict[str, str]:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context=trace.set_span_in_context(of))
    return carrier


@pytest.mark.parametrize(
    "of",
    [span(), span(sampled=True), span(state=TraceState([("vendor", "x")])), span(trace_id=0)],
    ids=["unsampled", "sampled", "with a state", "of nothing"],
)
def test_a_call_carries_what_opentelemetry_would_have_it_carry(of: NonRecordingSpan) -> None:
    assert dict(spans.inject(of, ())) == theirs(of)
    with carrying("tenant", "a b"):
        assert dict(spans.inject(of, ())) == theirs(of)
        assert "baggage" in theirs(of)
    with propagated_by(TraceContextTextMapPropagator()):
        assert dict(spans.inject(of, ())) == theirs(of)


def test_entries_of_the_caller_stay_but_for_the_same_names() -> None:
    own = [("x-user", "7"), ("traceparent", "of somebody else")]
    assert spans.inject(span(), own) == [("x-user", "7"), *theirs(span()).items()]
