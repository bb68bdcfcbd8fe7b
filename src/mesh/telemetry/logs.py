"""Logs as lines of JSON in the Elastic Common Schema, one record a line; Filebeat and Logstash take them unchanged.

Field names are flat with dots, as the ECS logging spec wants `log.level` and allows the rest. Extras pass a list: ECS
names we know, and "mesh.*". The text of foreign exceptions is withheld unless the level is DEBUG, because it tends to
quote what was being handled (a database names the row that collided); their type and stack tell where. What a user
reads is docs/logs-and-traces.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from opentelemetry import trace

from mesh.errors import MeshError, Refusal, SettingsError

ECS_VERSION = "8.11.0"  # as in envoy/front.yaml

# What `extra` may name. Anything else is dropped: a field nobody thought about is how personal data gets into logs.
_EXTRAS = frozenset(
    {
        "error.code",
        "event.action",
        "event.category",
        "event.code",
        "event.dataset",
        "event.duration",
        "event.kind",
        "event.outcome",
        "event.reason",
        "event.type",
        "file.path",
        "host.name",
        "http.request.method",
        "http.response.status_code",
        "network.protocol",
        "network.transport",
        "process.exit_code",
        "process.name",
        "process.pid",
        "server.address",
        "server.port",
        "service.address",
        "service.id",
        "service.name",
        "service.node.name",
        "service.state",
        "service.target.name",
        "service.type",
        "service.version",
        "span.id",
        "tls.version",
        "trace.id",
        "transaction.id",
    }
)
_MESH = re.compile(r"mesh\.[a-z][a-z0-9_.]{0,60}")
_EMAIL = re.compile(r"[^\s@<>\"'(),:;=\[\]{}]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")

# Errors whose text is written by us or by the operating system. A Refusal's is for its caller and may quote a request.
_TELLING = (MeshError, OSError, ImportError, TimeoutError, asyncio.CancelledError, RecursionError, MemoryError)

_UNTOLD = "(a message that cannot be shown)"
_TEXT = 8_192  # characters of a message; Elasticsearch's keyword fields end at 32,766 bytes
_STACK = 16_384


def configure(
    level: str = "INFO",
    service_name: str = "",
    instance_id: str = "",
    stream: TextIO | None = None,
    *,
    service_version: str = "",
) -> None:
    """Send the process's logs, warnings and uncaught exceptions to a stream (stderr) as JSON. Again: replaces the last.

    For a process that is ours to set up, such as `mesh.serve`'s; a library's user configures logging alone. Raises
    SettingsError for a level that is none.
    """
    levels = logging.getLevelNamesMapping()
    if level.upper() not in levels:
        raise SettingsError(f"MESH_LOG_LEVEL is {level[:40]!r}: write DEBUG, INFO, WARNING, ERROR or CRITICAL")
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(Formatter(service_name, instance_id, service_version, candid=levels[level.upper()] <= 10))
    root = logging.getLogger()
    for old in list(root.handlers):
        # Ours from before, and the plain ones that logging.basicConfig or a library put there to the same stream.
        if type(old) in (_Handler, logging.StreamHandler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(levels[level.upper()])
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def on_loop_error(loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
    """An event loop's exception handler that logs; `loop.set_exception_handler(logs.on_loop_error)`.

    asyncio's own writes the repr of futures, results included, into the message.
    """
    error = about.get("exception")
    logging.getLogger("asyncio").error(str(about.get("message", "error in the event loop")), exc_info=error)


class Formatter(logging.Formatter):
    """Writes a record as one line of JSON in ECS. candid: foreign exceptions keep their text."""

    def __init__(self, service: str = "", node: str = "", version: str = "", *, candid: bool = False) -> None:
        super().__init__()
        own = {"service.name": service, "service.version": version, "service.node.name": node}
        self._own = {name: value for name, value in own.items() if value}
        self._candid = candid

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end. Never raises and never holds a line break or a control character."""
        fields: dict[str, Any] = {
            "@timestamp": _timestamp(record.created),
            "log.level": record.levelname.lower(),
            "message": _clean(self._message(record), _TEXT),
            "ecs.version": ECS_VERSION,
            "log.logger": record.name,
            **self._own,
            "process.pid": record.process,
            "process.thread.name": record.threadName,
        }
        if service := self._own.get("service.name"):
            fields["event.dataset"] = f"{service}.log"
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            fields["trace.id"], fields["span.id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
        fields.update(self._extras(record))
        if record.exc_info and record.exc_info[1] is not None:
            fields.update(self._error(record.exc_info[1]))
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)  # ASCII: every control character is escaped

    def _message(self, record: logging.LogRecord) -> str:
        args = record.args
        if isinstance(args, tuple):
            record.args = tuple(self._told(a) if isinstance(a, BaseException) else a for a in args)
        try:
            text = record.getMessage()
        except Exception:  # a wrong format string must not cost the record
            text = f"{record.msg} (its arguments do not fit)" if isinstance(record.msg, str) else _UNTOLD
        finally:
            record.args = args
        # asyncio appends the repr of tasks and futures, with their results, line by line.
        return text.partition("\n")[0] if record.name == "asyncio" else text

    def _told(self, error: BaseException) -> str:
        if self._candid or (isinstance(error, _TELLING) and not isinstance(error, Refusal)):
            return str(error) or type(error).__name__
        return type(error).__name__

    def _error(self, error: BaseException) -> dict[str, str]:
        stack = traceback.format_exception(error) if self._candid else _frames(error)
        return {
            "error.type": _type(error),
            "error.message": _clean(self._told(error), _TEXT),
            "error.stack_trace": _clean("".join(stack), _STACK),
        }

    def _extras(self, record: logging.LogRecord) -> dict[str, Any]:
        extras = {
            name: _value(value)
            for name, value in record.__dict__.items()
            if value is not None and "." in name and (name in _EXTRAS or _MESH.fullmatch(name))
        }
        # Who speaks is fixed; a service that is spoken of is the target.
        if "service.name" in self._own and (other := extras.pop("service.name", None)) not in (
            None,
            self._own["service.name"],
        ):
            extras.setdefault("service.target.name", other)
        return extras


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be found again. A stream that is gone is no reason to say so on it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _clean(text: str, limit: int) -> str:
    """Cut a text to size and blot out what looks like an email address."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text) - limit} more characters)"
    return _EMAIL.sub("(email)", text) if "@" in text else text


def _value(value: Any) -> Any:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(item) for item in list(value)[:32] if not isinstance(item, list | tuple | set | frozenset)]
    try:
        return _clean(str(value), 1024)
    except Exception:
        return "(a value that cannot be shown)"


def _frames(error: BaseException, depth: int = 8) -> list[str]:
    """Return the stack of an error, its causes first: files, lines and types, but not their texts."""
    lines: list[str] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth > 0:
        lines = [*_frames(cause, depth - 1), "\nthen:\n\n"]
    lines.append("Traceback (most recent call last):\n")
    lines += traceback.format_list(traceback.extract_tb(error.__traceback__, limit=64))
    lines.append(f"{_type(error)}\n")
    if isinstance(error, BaseExceptionGroup) and depth > 0:
        for number, inner in enumerate(error.exceptions[:8], 1):
            lines += [f"\n{number} of {len(error.exceptions)} in the group:\n", *_frames(inner, depth - 4)]
    return lines


def _type(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _uncaught(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
    if not issubclass(kind, Exception):
        sys.__excepthook__(kind, error, stack)  # Ctrl-C is no error
        return
    logging.getLogger("mesh.process").critical("uncaught exception", exc_info=(kind, error, stack))


def _uncaught_in_thread(about: threading.ExceptHookArgs) -> None:
    if about.exc_value is not None:
        name = about.thread.name if about.thread else "a thread"
        logging.getLogger("mesh.process").critical("uncaught exception in %s", name, exc_info=about.exc_value)


def _unraisable(about: Any) -> None:
    logging.getLogger("mesh.process").error("exception that could not be raised", exc_info=about.exc_value)
