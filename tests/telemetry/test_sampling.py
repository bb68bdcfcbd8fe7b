"""Whether a call is taken is asked once, before there is a span; either way the next hop hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from mesh.telemetry import spans

SERVICE, METHOD = "story.v1.StoryService", "Tell"


class Asked(Sampler):
    """Remembers what it was asked, and answers by the trace id alone."""

    def __init__(self, of: Sampler, state: TraceState | None = None) -> None:
        self.ids: list[int] = []
        self._of = of
        self._state = state

    def should_sample(self, parent_context: Any, trace_id: int, *args: Any, **kwargs: Any) -> SamplingResult:
        self.ids.append(trace_id)
        said = self._of.should_sample(parent_context, trace_id, *args, **kwargs)
        return SamplingResult(said.decision, said.attributes, self._state)

    def get_description(self) -> str:
        return "Asked"


@contextmanager
def sampled_by(sampler: Sampler, ids: IdGenerator | None = None) -> Iterator[InMemorySpanExporter]:
    exported, provider = InMemorySpanExporter(), TracerProvider(sampler=sampler, id_generator=ids)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    before = spans._tracer, spans._draws
    spans.use(provider)
    yield exported
    spans._tracer, spans._draws = before


@contextmanager
def inside(span: trace.Span) -> Iterator[None]:
    token = context.attach(trace.set_span_in_context(span))
    yield
    context.detach(token)


def carried(metadata: Any) -> SpanContext:
    return trace.get_current_span(propagate.extract(dict(metadata))).get_span_context()


def test_a_call_that_is_not_taken_has_no_span_and_says_so_to_the_next_hop() -> None:
    with sampled_by(ParentBased(ALWAYS_OFF)):
        first, second = (spans.begin_call(SERVICE, METHOD, None) for _ in range(2))
    assert first[0] is second[0] is None
    told = carried(first[1])
    assert told.is_valid
    assert not told.trace_flags.sampled
    assert carried(second[1]).trace_id != told.trace_id, "logs of two calls are told apart by it"


def test_a_call_that_is_not_taken_keeps_its_callers_metadata_but_for_the_same_names() -> None:
    with sampled_by(ALWAYS_OFF):
        _, metadata = spans.begin_call(SERVICE, METHOD, [("x-user", "7"), ("traceparent", "of somebody else")])
    assert [name for name, _ in metadata] == ["x-user", "traceparent"]
    assert carried(metadata).is_valid


def test_a_call_that_is_taken_is_a_root_with_the_id_that_its_sampler_was_asked_about() -> None:
    with sampled_by(sampler := Asked(ALWAYS_ON)) as exported:
        span, metadata = spans.begin_call(SERVICE, METHOD, [("x-user", "7")])
        assert span is not None
        spans.end(span, "OK")
    (found,) = exported.get_finished_spans()
    assert [found.context.trace_id] == sampler.ids, "asked once, as some samplers count"
    assert (found.name, found.parent) == (f"{SERVICE}/{METHOD}", None)
    assert found.attributes == {"rpc.system.name": "grpc", "rpc.method": found.name, "rpc.response.status_code": "OK"}
    assert metadata == [("x-user", "7")], "its attempts carry their own"
    assert span.get_span_context().trace_flags.sampled


def test_as_many_are_taken_as_the_ratio_says_each_by_its_id() -> None:
    with sampled_by(sampler := Asked(ParentBased(TraceIdRatioBased(0.25)))) as exported:
        for _ in range(400):
            span, _ = spans.begin_call(SERVICE, METHOD, None)
            if span is not None:
                spans.end(span, "OK")
    taken = {found.context.trace_id for found in exported.get_finished_spans()}
    quarter = TraceIdRatioBased.get_bound_for_rate(0.25)
    assert taken == {i for i in sampler.ids if i & TraceIdRatioBased.TRACE_ID_LIMIT < quarter}
    assert len(sampler.ids) == 400
    assert taken


class Numbered(IdGenerator):
    """Gives the one id."""

    def __init__(self, trace_id: int) -> None:
        self._trace_id = trace_id

    def generate_trace_id(self) -> int:
        return self._trace_id

    def generate_span_id(self) -> int:
        return 0xABC


class Reversed(TraceIdRatioBased):
    """Takes what the ratio would not."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        said = super().should_sample(*args, **kwargs)
        return SamplingResult(Decision.DROP if said.decision.is_sampled() else Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize("rate", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("away", [-1, 0, 1])
@pytest.mark.parametrize(
    "make",
    [
        TraceIdRatioBased,
        ParentBasedTraceIdRatio,
        lambda rate: ParentBased(TraceIdRatioBased(rate)),
        Reversed,
        lambda rate: ParentBased(Reversed(rate)),
        lambda rate: ParentBased(ParentBased(TraceIdRatioBased(rate))),
        lambda rate: ALWAYS_ON,
    ],
    ids=["ratio", "by parent", "of a parent", "reversed", "reversed of a parent", "of a grandparent", "always"],
)
def test_what_is_taken_is_what_opentelemetry_would_take(make: Any, rate: float, away: int) -> None:
    sampler = make(rate)
    half = min(max(TraceIdRatioBased.get_bound_for_rate(rate) + away, 0), (1 << 64) - 1)
    ids = Numbered((0x123 << 64) + half)
    theirs = TracerProvider(sampler=sampler, id_generator=ids).get_tracer("theirs").start_span("x")
    with sampled_by(sampler, ids):
        span, metadata = spans.begin_call(SERVICE, METHOD, None)
    assert (span is not None) is theirs.is_recording()
    assert (span.get_span_context() if span else carried(metadata)).trace_id == theirs.get_span_context().trace_id


@pytest.mark.parametrize("sampled", [True, False])
def test_a_call_on_behalf_of_another_goes_by_what_was_decided_for_that(sampled: bool) -> None:
    parent = NonRecordingSpan(SpanContext(0x123, 0xABC, True, TraceFlags(int(sampled))))
    with sampled_by(ParentBased(ALWAYS_OFF if sampled else ALWAYS_ON)), inside(parent):
        span, metadata = spans.begin_call(SERVICE, METHOD, None)
    assert (span is not None) is sampled
    told = span.get_span_context() if span is not None else carried(metadata)
    assert (told.trace_id, bool(told.trace_flags.sampled)) == (0x123, sampled)
    assert told.span_id != 0xABC


def test_what_a_sampler_adds_to_the_state_of_a_trace_travels_though_it_is_not_taken() -> None:
    with sampled_by(Asked(ALWAYS_OFF, TraceState([("vendor", "x")]))):
        span, metadata = spans.begin_call(SERVICE, METHOD, None)
        carrier = spans.inject(span, metadata or ()) if span is not None else metadata
    assert carried(carrier).trace_state == {"vendor": "x"}


def test_a_call_that_is_recorded_and_not_sampled_has_a_span() -> None:
    class RecordOnly(Asked):
        def should_sample(self, parent_context: Any, trace_id: int, *args: Any, **kwargs: Any) -> SamplingResult:
            return SamplingResult(Decision.RECORD_ONLY)

    with sampled_by(RecordOnly(ALWAYS_OFF)):
        span, _ = spans.begin_call(SERVICE, METHOD, None)
    assert span is not None
    assert span.is_recording()
    assert not span.get_span_context().trace_flags.sampled


def test_a_tracer_of_other_make_is_asked_in_its_own_way() -> None:
    class Provider(trace.TracerProvider):
        def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
            return Tracer()

    class Tracer(trace.NoOpTracer):
        def start_span(self, *_: Any, **__: Any) -> trace.Span:
            return NonRecordingSpan(SpanContext(0x123, 0xABC, False))

    before = spans._tracer, spans._draws
    spans.use(Provider())
    try:
        assert carried(spans.begin_call(SERVICE, METHOD, None)[1]).trace_id == 0x123
    finally:
        spans._tracer, spans._draws = before
