"""Whether calls are traced, and by whose tracer. Until somebody takes spans they cost one `if`, and OpenTelemetry is
not even imported: that would be a tenth of the way to a process's first call.

What is done with spans is `mesh.telemetry.spans`; its names stand here too, and are loaded with the first of them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from mesh.telemetry import export

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from mesh.telemetry.spans import ServerSpan as ServerSpan
    from mesh.telemetry.spans import begin_call as begin_call
    from mesh.telemetry.spans import end as end
    from mesh.telemetry.spans import inject as inject
    from mesh.telemetry.spans import start_attempt as start_attempt
    from mesh.telemetry.spans import start_call as start_call
    from mesh.telemetry.spans import start_server as start_server

# Names the provider that OpenTelemetry itself sets when first asked for one.
_NAMED = "OTEL_PYTHON_TRACER_PROVIDER"

_enabled = False
_tried = False
_made: TracerProvider | None = None


def configure(service_name: str, service_version: str = "", instance_id: str = "") -> None:
    """Set the tracer provider of a process that is ours to set up, if the OTEL_* variables ask for one.

    A provider that the application has set before wins. Calling it again changes nothing.
    """
    if _can_be():
        from mesh.telemetry import spans

        if not spans.is_provided():
            made = _own(service_name, service_version, instance_id)
            if made is not None:
                spans.provide(made)
    adopt()


def adopt() -> None:
    """Use the provider that the application has set; without one, what the OTEL_* variables ask for, for our spans.

    For a library, which leaves the process's own provider to the application. Called when a channel or a server is
    made; what the application sets later counts from the next one on.
    """
    global _enabled
    if _can_be():
        from mesh.telemetry import spans

        _enabled = spans.use(None if spans.is_provided() else _own()) or _enabled


def enabled() -> bool:
    """Whether anybody takes spans. Ask first: every function of `spans` costs microseconds."""
    return _enabled


def _can_be() -> bool:
    """Whether there may be a provider: who sets one has imported OpenTelemetry, or the variables ask for one."""
    return "opentelemetry.trace" in sys.modules or bool(os.environ.get(_NAMED)) or export.wanted(os.environ)


def _own(service_name: str = "", service_version: str = "", instance_id: str = "") -> TracerProvider | None:
    """Return the provider that the variables ask for; it is made, or complained about, once."""
    global _tried, _made
    if not _tried:
        _tried, _made = True, export.provider(service_name, service_version, instance_id)
    return _made


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mesh.telemetry import spans

    value = getattr(spans, name)
    globals()[name] = value
    return value
