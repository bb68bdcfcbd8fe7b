"""An OpenTelemetry collector that keeps what it is sent: OTLP over gRPC and over HTTP, on free loopback ports."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

Request = trace_service_pb2.ExportTraceServiceRequest
Response = trace_service_pb2.ExportTraceServiceResponse


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Both receivers, while the context lasts. `spans` are dicts with name, kind, status, ids and attributes."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.resources: list[dict[str, Any]] = []
        self.scopes: list[tuple[str, str]] = []
        """Name and schema URL."""
        self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http_address = f"127.0.0.1:{self._http.server_address[1]}"

    def Export(self, request: Request, context: grpc.ServicerContext) -> Response:
        """Keep the spans."""
        self._keep(request)
        return Response()

    def _keep(self, request: Request) -> None:
        for by_resource in request.resource_spans:
            self.resources.append(_values(by_resource.resource.attributes))
            for by_scope in by_resource.scope_spans:
                self.scopes.append((by_scope.scope.name, by_scope.schema_url))
                self.spans += [_span(span) for span in by_scope.spans]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        keep = self._keep

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if self.path != "/v1/traces":
                    self.send_error(404)
                    return
                keep(Request.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(Response().SerializeToString())

            def log_message(self, *about: object) -> None:
                """Say nothing."""

        return Handler

    def __enter__(self) -> Self:
        self._server.start()
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()


def _values(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def _span(span: Any) -> dict[str, Any]:
    kinds = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT"}
    return {
        "name": span.name,
        "kind": kinds[span.kind],
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "error": span.status.code == 2,
        "status": span.status.message,
        "attributes": _values(span.attributes),
    }
