"""A whole road, watched: calls of every kind from our client to our server, as collector, log and page tell them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.collector import Collector
from support.privacy import forbidden_in

TESTS = Path(__file__).parents[1]
SECRET = "Ada Lovelace"

STORY = """
import asyncio, logging, sys, urllib.request
import grpc, mesh
from mesh.policy import MethodPolicy, RetryPolicy
from mesh.settings import Settings
from mesh.telemetry import logs, pages, tracing
from support.echo import SERVICE, EchoRequest, EchoServicer, EchoServiceStub

class Servicer(EchoServicer):
    refusals = 1

    async def Unary(self, request, context):
        logging.getLogger("echo").info("echoing")
        if request.text == "retried" and self.refusals:
            self.refusals -= 1
            raise mesh.Refusal(grpc.StatusCode.UNAVAILABLE, "not now", "NOT_NOW", "echo.v1")
        return await super().Unary(request, context)

async def tried(call):
    try:
        return await call if not hasattr(call, "__aiter__") else [answer async for answer in call]
    except grpc.aio.AioRpcError as e:
        return e.code()

async def main():
    logs.configure("INFO", SERVICE, "echo-1", sys.stderr)
    tracing.configure(SERVICE, "1.2", "echo-1")
    page = pages.serve_metrics("127.0.0.1:0")
    settings = Settings(drain=1.0, settle=0.0, instance_id="echo-1")
    async with mesh.Server(Servicer("echo-1"), settings=settings, store=mesh.MemoryStore()) as server:
        async with mesh.connect(SERVICE, endpoints=[str(server.endpoint)]) as channel:
            echo, secret = EchoServiceStub(channel), "Ada Lovelace"
            assert (await echo.Unary(EchoRequest(text="retried"))).text == "retried"
            assert (await echo.Unary(EchoRequest(text=secret), metadata=[("x-user", secret)])).text == secret
            assert await tried(echo.Unary(EchoRequest(text=secret, fail="RAISE"))) is grpc.StatusCode.INTERNAL
            assert await tried(echo.Unary(EchoRequest(text=secret, fail="NOT_FOUND"))) is grpc.StatusCode.NOT_FOUND
            assert len(await tried(echo.ServerStream(EchoRequest(text=secret, count=2)))) == 2
            assert (await tried(echo.ClientStream(iter([EchoRequest(text=secret)] * 2)))).instance == "echo-1"
            assert len(await tried(echo.Bidi(iter([EchoRequest(text=secret)] * 2)))) == 2
            long = echo.Unary(EchoRequest(text=secret, sleep=30))
            await asyncio.sleep(0.2)
            long.cancel()
            assert await tried(echo.Missing(EchoRequest())) is grpc.StatusCode.UNIMPLEMENTED
            assert await tried(channel.unary_unary("/echo.v1.EchoService/Ada")(b"")) is grpc.StatusCode.UNIMPLEMENTED
    print(await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://{page.address}").read().decode()))
    page.close()

asyncio.run(main())
"""


class Told:
    """What the story's process told: spans, log lines and metrics."""

    def __init__(self, story: str = STORY) -> None:
        with Collector() as collector:
            asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}"}
            env = os.environ | asked | {"PYTHONPATH": str(TESTS), "GRPC_VERBOSITY": "NONE"}
            command = [sys.executable, "-c", story]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        self.spans = collector.spans
        self.text = done.stderr
        self.lines = [json.loads(line) for line in done.stderr.splitlines()]
        self.page = done.stdout
        families = text_string_to_metric_families(done.stdout)
        self.metrics = {
            (s.name, *(s.labels[k] for k in ("service", "method", "code") if k in s.labels)): s.value
            for family in families
            for s in family.samples
        }

    def of(self, kind: str, method: str) -> list[dict[str, Any]]:
        return [s for s in self.spans if (s["kind"], s["name"]) == (kind, f"echo.v1.EchoService/{method}")]


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


def test_every_attempt_has_its_call_above_and_its_handler_below(told: Told) -> None:
    by_id = {span["id"]: span for span in told.spans}
    attempts = [span for span in told.spans if span["kind"] == "CLIENT"]
    handlers = [span for span in told.spans if span["kind"] == "SERVER"]
    assert all(by_id[attempt["parent"]]["kind"] == "INTERNAL" for attempt in attempts)
    assert all(by_id[handler["parent"]]["kind"] == "CLIENT" for handler in handlers)
    assert {h["name"].partition("/")[2] for h in handlers} >= {"Unary", "ServerStream", "ClientStream", "Bidi"}


def test_a_retried_call_is_one_call_with_two_numbered_attempts(told: Told) -> None:
    attempts = told.of("CLIENT", "Unary")
    (first,) = [a for a in attempts if a["attributes"]["rpc.response.status_code"] == "UNAVAILABLE"]
    (second,) = [a for a in attempts if a["parent"] == first["parent"] and a is not first]
    (call,) = [c for c in told.of("INTERNAL", "Unary") if c["id"] == first["parent"]]
    assert (first["attributes"]["mesh.attempt"], second["attributes"]["mesh.attempt"]) == (1, 2)
    assert call["attributes"]["rpc.response.status_code"] == "OK"


def test_every_span_says_how_it_ended_and_none_is_left_open(told: Told) -> None:
    codes = [s["attributes"].get("rpc.response.status_code") for s in told.spans]
    assert None not in codes
    kinds = [s["kind"] for s in told.spans]
    assert kinds.count("INTERNAL") == 10
    assert kinds.count("CLIENT") == 11
    assert "CANCELLED" in codes


def test_what_a_handler_logs_carries_its_trace(told: Told) -> None:
    handlers = {(s["trace"], s["id"]) for s in told.of("SERVER", "Unary")}
    logged = {(line["trace.id"], line["span.id"]) for line in told.lines if line["log.logger"] == "echo"}
    assert logged == handlers
    (broken,) = [line for line in told.lines if line.get("event.action") == "handler-failed"]
    assert (broken["trace.id"], broken["span.id"]) in handlers
    assert broken["error.type"] == "RuntimeError"


def test_the_page_counts_what_happened(told: Told) -> None:
    service = "echo.v1.EchoService"
    assert told.metrics["mesh_client_calls_total", service, "Unary", "OK"] == 2
    assert told.metrics["mesh_client_attempts_total", service, "Unary", "UNAVAILABLE"] == 1
    assert told.metrics["mesh_client_calls_total", service, "Unary", "INTERNAL"] == 1
    assert told.metrics["mesh_client_call_seconds_count", service, "Unary"] == 5
    assert told.metrics["mesh_server_calls_total", service, "Unary", "NOT_FOUND"] == 1
    assert told.metrics["mesh_server_in_flight", service] == 0


def test_nothing_that_is_told_quotes_a_request(told: Told) -> None:
    # The servicer raises RuntimeError("… by 'Ada Lovelace'") and the caller sends it in metadata and messages.
    assert forbidden_in(told.text, [SECRET]) == []
    assert forbidden_in(str(told.spans), [SECRET]) == []
    assert forbidden_in(told.page, [SECRET]) == []


def test_a_name_that_nobody_serves_is_no_label_of_the_server(told: Told) -> None:
    assert not [key for key in told.metrics if key[0].startswith("mesh_server") and "Ada" in key]
    assert told.metrics["mesh_server_calls_total", "unknown", "unknown", "UNIMPLEMENTED"] == 1


THREADS = """
import asyncio, threading
import mesh, mesh.blocking
from mesh.settings import Settings
from mesh.telemetry import tracing
from opentelemetry import trace
from support.echo import SERVICE, EchoRequest, EchoServicer, EchoServiceStub

tracing.configure("caller")
ready, addresses = threading.Event(), []

async def serve():
    global loop, told
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    settings = Settings(drain=1.0, settle=0.0, instance_id="echo-1")
    async with mesh.Server(EchoServicer("echo-1"), settings=settings, store=mesh.MemoryStore()) as server:
        addresses.append(str(server.endpoint))
        ready.set()
        await told.wait()

server = threading.Thread(target=lambda: asyncio.run(serve()))
server.start()
ready.wait()
with trace.get_tracer("application").start_as_current_span("mine"):
    with mesh.blocking.connect(SERVICE, endpoints=addresses) as channel:
        echo = EchoServiceStub(channel)
        assert echo.Unary(EchoRequest(text="x")).text == "x"
        assert len(list(echo.ServerStream(EchoRequest(text="x", count=2)))) == 2
loop.call_soon_threadsafe(told.set)
server.join()
"""


def test_calls_of_a_thread_belong_to_the_span_of_that_thread() -> None:
    told = Told(THREADS)
    assert len({span["trace"] for span in told.spans}) == 1
    (mine,) = [span for span in told.spans if span["name"] == "mine"]
    assert [call["parent"] for call in told.of("INTERNAL", "Unary")] == [mine["id"]]
    assert [call["parent"] for call in told.of("INTERNAL", "ServerStream")] == [mine["id"]]
    assert len(told.of("SERVER", "Unary")) == len(told.of("SERVER", "ServerStream")) == 1
