"""HTTP annotations of a contract (google.api.http), and whether Envoy can use them.

Envoy takes the transcoder's configuration as a whole or not at all: one wrong template, or two methods at one path,
would stop JSON news for the whole mesh. So a service is looked at before it is let in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

_VARIABLE = re.compile(r"\{([^{}=]+)(?:=([^{}]*))?\}")
# After variables gave way to their patterns. "**" stands last. https://github.com/googleapis/googleapis, http.proto
_SEGMENT = r"(?:\*|[A-Za-z0-9._~%!$&'()+,;=@-]+)"
_TEMPLATE = re.compile(rf"(?:/{_SEGMENT})*(?:/\*\*)?(?::[A-Za-z0-9._~-]+)?")


@dataclass(frozen=True, slots=True)
class Binding:
    """One way to a method: a verb and a template, and which field of the request is the body ("*": all of it)."""

    verb: str
    template: str
    body: str = ""

    @property
    def shape(self) -> str:
        """The template with variables as the patterns they stand for; equal shapes meet the same paths."""
        return _VARIABLE.sub(lambda found: found.group(2) or "*", self.template)

    @property
    def variables(self) -> tuple[str, ...]:
        """The fields that are read from the path."""
        return tuple(found.group(1) for found in _VARIABLE.finditer(self.template))


def bindings(method: MethodDescriptor) -> Iterator[Binding]:
    """Tell a method's bindings, the additional ones included."""
    # A pool of its own knows options as unknown fields; a trip over the wire makes them ours.
    options = MethodOptions.FromString(method.GetOptions().SerializeToString())
    if options.HasExtension(annotations_pb2.http):
        rule = options.Extensions[annotations_pb2.http]
        for each in (rule, *rule.additional_bindings):
            verb, template = _verb(each)
            if verb:
                yield Binding(verb, template, each.body)


def problem_of(service: ServiceDescriptor, taken: set[tuple[str, str]]) -> str:
    """Say what keeps a service out, "" if nothing does.

    taken: verbs and shapes of the services let in before; those of this one are added if it is let in.
    """
    own: set[tuple[str, str]] = set()
    for method in service.methods:
        for binding in bindings(method):
            where = f"{method.name}: {binding.verb} {binding.template}"
            if not _TEMPLATE.fullmatch(binding.shape) or not binding.shape:
                return f"{where} is no path template"
            if (binding.verb, binding.shape) in taken | own:
                return f"{where} is taken by another method"
            for path in (*binding.variables, *([binding.body] if binding.body not in ("", "*") else [])):
                if _field(method.input_type, path) is None:
                    return f"{where} names the field {path!r}, which {method.input_type.full_name} has not"
            own.add((binding.verb, binding.shape))
    taken |= own
    return ""


def _verb(rule: http_pb2.HttpRule) -> tuple[str, str]:
    which = rule.WhichOneof("pattern")
    if which == "custom":
        return rule.custom.kind, rule.custom.path
    return (which.upper(), getattr(rule, which)) if which else ("", "")


def _field(message: Descriptor | None, path: str) -> FieldDescriptor | None:
    field = None
    for name in path.split("."):
        field = message.fields_by_name.get(name) if message is not None else None
        if field is None:
            return None
        message = field.message_type
    return field
