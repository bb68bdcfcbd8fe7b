"""How spans leave the process: OTLP, set up by OpenTelemetry's own OTEL_* variables, and only if they ask for it.

The SDK and the exporter are the extra `otel`; they are imported when asked for. A collector that is away costs a line
in the log now and then and at most a second at exit.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_LOG = logging.getLogger("mesh.telemetry")

_MISSING = "No traces: OTEL_* asks for them and the exporter is not installed: pip install 'grpc-mesh[otel]'"
# xds-protos brings an old copy of the same modules and is installed later: https://github.com/grpc/grpc/issues/42926
_OVERWRITTEN = (
    "No traces: another package has overwritten opentelemetry-proto (xds-protos does): "
    "pip install --force-reinstall --no-deps opentelemetry-proto"
)
_EXIT = 0.9  # seconds for the last spans; more would delay every restart while the collector is down
_QUIET = 60.0  # seconds between two complaints of the exporter
_LOUD = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http._common",
    "opentelemetry.sdk._shared_internal",
)


def wanted(env: Mapping[str, str]) -> bool:
    """Whether the OTEL_* variables ask for spans over OTLP."""
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = [name.strip() for name in env.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if exporters:
        return "otlp" in exporters
    return bool(env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT"))


def provider(service_name: str = "", service_version: str = "", instance_id: str = "") -> TracerProvider | None:
    """Return a provider that exports as the variables ask, or None; why there is none although they ask is logged."""
    if not wanted(os.environ):
        return None
    try:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(os.environ)
    except ImportError as e:
        _LOG.warning(_OVERWRITTEN if (e.name or "").startswith("opentelemetry.proto") else _MISSING)
        return None
    except Exception as e:  # a wrong OTEL_* value: no reason not to serve
        _LOG.warning("No traces: the exporter does not accept its OTEL_* settings: %s", f"{type(e).__name__}: {e}")
        return None
    ours = {"service.name": service_name, "service.version": service_version, "service.instance.id": instance_id}
    # What the operator wrote in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES wins.
    resource = Resource.create({k: v for k, v in ours.items() if v}).merge(OTELResourceDetector().detect())
    made = TracerProvider(resource=resource, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(exporter))
    for name in _LOUD:
        logging.getLogger(name).addFilter(_Seldom())
    atexit.register(_Leaving(made, exporter).leave)
    return made


def _exporter(env: Mapping[str, str]) -> SpanExporter:
    """Return the exporter of the protocol asked for. Where, with which headers and certificates it reads by itself."""
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if protocol.strip() == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHTTP

        return OverHTTP()
    if protocol.strip() != "grpc":
        _LOG.warning("OTEL_EXPORTER_OTLP_PROTOCOL is %r: write grpc or http/protobuf; using grpc.", protocol)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGRPC

    return OverGRPC()


class _Leaving:
    """Sends the last spans at exit, and gives up after a moment.

    The SDK's own shutdown waits 30 s for a dead collector, and at exit no thread can be started to bound it; so a
    daemon thread waits for that moment from the beginning.
    """

    def __init__(self, provider: TracerProvider, exporter: SpanExporter) -> None:
        self._provider, self._exporter = provider, exporter
        self._asked, self._done = threading.Event(), threading.Event()
        self._pid = os.getpid()
        threading.Thread(target=self._wait, name="mesh-last-spans", daemon=True).start()

    def _wait(self) -> None:
        self._asked.wait()
        self._provider.shutdown()
        self._done.set()

    def leave(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child has not this thread
        self._asked.set()
        if not self._done.wait(_EXIT):
            self._exporter.shutdown()  # cuts the export under way


class _Seldom(logging.Filter):
    """Lets one complaint through in a while; a collector that is away would fill the log otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self._last < _QUIET:
            return False
        self._last = record.created
        return True
