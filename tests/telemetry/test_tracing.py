from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.collector import Collector
from support.ports import free_port

STORY = """
import asyncio, json, logging, sys
import grpc
from mesh.telemetry import logs, tracing

SERVICE, METHOD = "story.v1.StoryService", "Tell"

def handle(request, context):
    with tracing.start_server(SERVICE, METHOD, context.invocation_metadata()) as span:
        logging.getLogger("mesh.story").info("handled")
        inner = tracing.start_call("other.v1.OtherService", "Ask")
        tracing.end(inner, "OK")
        tracing.end(span, "NOT_FOUND")
    with tracing.start_server("grpc.health.v1.Health", "Check", ()) as probe:
        tracing.end(probe, "OK")
    return b"done"

async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = tracing.start_call(SERVICE, METHOD)
        first = tracing.start_attempt(call, SERVICE, METHOD, "127.0.0.1:1", 1)
        tracing.end(first, "UNAVAILABLE")
        second = tracing.start_attempt(call, SERVICE, METHOD, f"127.0.0.1:{port}", 2)
        metadata = tracing.inject(second, [("x-user", "Ada Lovelace"), ("traceparent", "of somebody else")])
        assert await channel.unary_unary(f"/{SERVICE}/{METHOD}")(b"", metadata=metadata) == b"done"
        tracing.end(second, "NOT_FOUND")
        tracing.end(call, "NOT_FOUND")
        tracing.end(call, "OK")
    await server.stop(None)

logs.configure("INFO", "story", "story-1", sys.stdout)
tracing.configure("story", "1.2", "story-1")
asyncio.run(main())
print(json.dumps({"enabled": tracing.enabled()}))
"""


def tell(env: dict[str, str], story: str = STORY) -> tuple[list[dict[str, Any]], float]:
    """Run the story in a process of its own; return its lines and how long it took."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", story], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], time.monotonic() - began


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def spans_by_kind(collector: Collector) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for span in collector.spans:
        found.setdefault((span["name"], span["kind"]), []).append(span)
    return found


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_call_its_attempts_and_its_handler_are_one_trace(collector: Collector, protocol: str) -> None:
    address = collector.address if protocol == "grpc" else collector.http_address
    lines, _ = tell({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    found = spans_by_kind(collector)
    name = "story.v1.StoryService/Tell"
    (call,) = found[name, "INTERNAL"]
    first, second = sorted(found[name, "CLIENT"], key=lambda s: s["attributes"]["mesh.attempt"])
    (handler,) = found[name, "SERVER"]
    (inner,) = found["other.v1.OtherService/Ask", "INTERNAL"]
    assert len(collector.spans) == 5
    assert len({span["trace"] for span in collector.spans}) == 1
    assert call["parent"] == ""
    assert first["parent"] == second["parent"] == call["id"]
    assert handler["parent"] == second["id"]
    assert inner["parent"] == handler["id"]
    (logged,) = [line for line in lines if line.get("log.logger") == "mesh.story"]
    assert (logged["trace.id"], logged["span.id"]) == (handler["trace"], handler["id"])


def test_attributes_follow_the_conventions_and_hold_no_content(collector: Collector) -> None:
    tell({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://{collector.address}"})
    found = spans_by_kind(collector)
    name = "story.v1.StoryService/Tell"
    first, second = sorted(found[name, "CLIENT"], key=lambda s: s["attributes"]["mesh.attempt"])
    assert first["attributes"] == {
        "rpc.system.name": "grpc",
        "rpc.method": name,
        "server.address": "127.0.0.1",
        "server.port": 1,
        "mesh.attempt": 1,
        "rpc.response.status_code": "UNAVAILABLE",
        "error.type": "UNAVAILABLE",
    }
    assert first["error"]
    assert first["status"] == ""
    # What a server answers on purpose is no fault of the server; for who called it is an error.
    (handler,) = found[name, "SERVER"]
    assert not handler["error"]
    assert handler["attributes"]["rpc.response.status_code"] == "NOT_FOUND"
    assert second["error"]
    (call,) = found[name, "INTERNAL"]
    assert call["attributes"]["rpc.response.status_code"] == "NOT_FOUND", "ending it again changed it"
    assert "Ada" not in str(collector.spans)
    assert collector.scopes[0] == ("mesh", "https://opentelemetry.io/schemas/1.44.0")
    own = {"service.name": "story", "service.version": "1.2", "service.instance.id": "story-1"}
    assert collector.resources[0].items() >= own.items()


def test_what_the_operator_names_in_the_environment_wins(collector: Collector) -> None:
    tell(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
            "OTEL_SERVICE_NAME": "named",
            "OTEL_RESOURCE_ATTRIBUTES": "service.version=9,deployment.environment.name=test",
        }
    )
    said = collector.resources[0]
    assert (said["service.name"], said["service.version"]) == ("named", "9")
    assert said["deployment.environment.name"] == "test"


def test_a_sampler_that_takes_nothing_sends_nothing(collector: Collector) -> None:
    lines, _ = tell(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        }
    )
    assert lines[-1] == {"enabled": True}
    assert collector.spans == []


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ],
)
def test_tracing_is_off_unless_it_is_asked_for(env: dict[str, str]) -> None:
    lines, _ = tell(env)
    assert lines[-1] == {"enabled": False}


QUIET = """
import sys, time
from mesh.telemetry import logs, tracing
logs.configure("INFO", "story", "story-1", sys.stdout)
tracing.configure("story", "1.2", "story-1")
for number in range(3000):
    tracing.end(tracing.start_call("story.v1.StoryService", "Tell"), "OK")
"""


@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_dead_collector_neither_delays_the_exit_nor_fills_the_log(protocol: str) -> None:
    dead = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    _, without = tell({}, QUIET)
    lines, seconds = tell(dead, QUIET)
    assert seconds < without + 1.0 + 3.0, "a second to leave, and three to load the SDK on a busy machine"
    assert len(lines) <= 3


BROKEN = """
import sys
sys.modules["opentelemetry.sdk.resources"] = None
from mesh.telemetry import logs, tracing
logs.configure("INFO", "story", "story-1", sys.stdout)
tracing.configure("story")
assert not tracing.enabled()
"""


def test_a_missing_sdk_is_one_sentence_that_says_what_to_install() -> None:
    lines, _ = tell({"OTEL_TRACES_EXPORTER": "otlp"}, BROKEN)
    (line,) = lines
    assert line["message"].endswith("pip install 'grpc-mesh[otel]'")


def test_otlp_modules_overwritten_by_another_package_are_told_apart_from_missing_ones() -> None:
    story = BROKEN.replace(
        'sys.modules["opentelemetry.sdk.resources"] = None',
        "import opentelemetry.proto.common.v1.common_pb2 as c; del c.InstrumentationScope",
    )
    lines, _ = tell({"OTEL_TRACES_EXPORTER": "otlp"}, story)
    (line,) = lines
    assert line["message"].endswith("pip install --force-reinstall --no-deps opentelemetry-proto")


def test_wrong_exporter_settings_do_not_stop_a_service() -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_COMPRESSION": "best"}
    lines, _ = tell(env, QUIET)
    (line,) = lines
    assert line["log.level"] == "warning"
    assert "COMPRESSION" in line["message"]


APPLICATION = """
import json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from mesh.telemetry import tracing

class Printer(SpanExporter):
    def export(self, spans):
        print(json.dumps([span.name for span in spans]))
        return SpanExportResult.SUCCESS

tracing.adopt()
assert not tracing.enabled()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Printer()))
trace.set_tracer_provider(provider)
tracing.adopt()
assert tracing.enabled()
tracing.end(tracing.start_call("story.v1.StoryService", "Tell"), "OK")
"""


def test_a_provider_that_the_application_set_is_used() -> None:
    lines, _ = tell({}, APPLICATION)
    assert lines == [["story.v1.StoryService/Tell"]]


LIBRARY = """
from opentelemetry import trace
from mesh.telemetry import tracing
tracing.adopt()
tracing.adopt()
assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
tracing.end(tracing.start_call("story.v1.StoryService", "Tell"), "OK")
"""


def test_a_client_is_traced_by_the_variables_alone_and_the_applications_provider_stays_its_own(
    collector: Collector,
) -> None:
    tell({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}", "OTEL_SERVICE_NAME": "caller"}, LIBRARY)
    assert [span["name"] for span in collector.spans] == ["story.v1.StoryService/Tell"]
    assert collector.resources[0]["service.name"] == "caller"
