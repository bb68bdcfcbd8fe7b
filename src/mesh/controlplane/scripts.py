"""Two small filters in Lua at the front, written from the contracts: what the transcoder and the router cannot know.

`strict.lua` refuses JSON that does not fit the contract; `repeats.lua` marks calls that carry a request_id and keeps
the retry budgets. What is written here is the tables they look into.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.controlplane.annotations import bindings
from mesh.xds.snapshot import Service

_LUA = resources.files(__package__)
_STRICT = (_LUA / "strict.lua").read_text(encoding="utf-8")
_REPEATS = (_LUA / "repeats.lua").read_text(encoding="utf-8")

# The retry budget of a service in one worker of Envoy, in attempts beyond the first: for each call; for each second if
# that is more (who is called rarely may be repeated too); and what may be saved, LEAST of them or the calls of so many
# seconds. Savings are for an instance of three that hangs: a third of the calls meet it until its health check is late.
# Calls that run at the same time may overdraw by some times as much.
_BUDGET = {"SHARE": 0.12, "FLOOR": 2, "LEAST": 10, "KEEP": 0.4, "DEBT": 3}

# Each call leaves a coroutine and some texts behind. LuaJIT sets out to collect them whenever what is alive has
# doubled, which is next to nothing here, and goes through all of the script's own tables each time: a third of what
# Lua costs a call. At ten times, Envoy has 2 MB more, and 16 MB more after sixteen callers who sent bodies of 0.9 MB.
_RARELY = 'collectgarbage("setpause", 1000)\n'

_TEXTS = {FieldDescriptor.CPPTYPE_STRING: "s", FieldDescriptor.CPPTYPE_BOOL: "b", FieldDescriptor.CPPTYPE_ENUM: "e"}
# Messages whose JSON is no object of their fields.
# https://protobuf.dev/programming-guides/json/
_WELL_KNOWN = {
    **dict.fromkeys(("Timestamp", "Duration", "FieldMask", "StringValue", "BytesValue"), "s"),
    **dict.fromkeys(("Struct", "Value", "ListValue", "Any", "NullValue"), "*"),
    **dict.fromkeys((f"{kind}Value" for kind in ("Double", "Float", "Int32", "Int64", "UInt32", "UInt64")), "n"),
    "BoolValue": "b",
}


def strict(pool: DescriptorPool, services: Iterable[str]) -> str:
    """Return the filter that checks the JSON bodies of these services' methods."""
    rules: dict[str, list[tuple[str, str]]] = {}
    types: dict[str, dict[str, str]] = {}
    for service in services:
        for method in pool.FindServiceByName(service).methods:
            for verb, path, kind in _bodies(method, types):
                rules.setdefault(verb, []).append((path, kind))
    for found in rules.values():
        # The one with more of its own text is meant: "/v1/users:import" before "/v1/{id}".
        found.sort(key=lambda rule: (-len(rule[0].replace("[^/]+", "").replace(".+", "")), rule))
    return f"{_RARELY}local RULES = {_table(rules)}\nlocal TYPES = {_table(types)}\n{_STRICT}"


def repeats(services: Iterable[Service]) -> str:
    """Return the filter that marks these services' calls that carry a request_id, and bounds what is repeated."""
    fields: dict[str, int] = {}
    purses: dict[str, int] = {}
    for number, service in enumerate(services, 1):
        fields |= {m.path: m.request_id for m in service.methods if m.is_marked}
        purses |= {m.path: number for m in service.methods if m.is_repeated}
    numbers = "".join(f"local {name} = {value}\n" for name, value in _BUDGET.items())
    return f"{_RARELY}local FIELDS = {_table(fields)}\nlocal PURSES = {_table(purses)}\n{numbers}{_REPEATS}"


def _bodies(method: MethodDescriptor, types: dict[str, dict[str, str]]) -> Iterator[tuple[str, str, str]]:
    for binding in bindings(method):
        message = method.input_type
        if binding.body == "*":
            kind = _message(message, types)
        elif binding.body in message.fields_by_name:
            kind = _field(message.fields_by_name[binding.body], types)
        else:
            continue
        yield binding.verb, _pattern(binding.shape), "[" + kind if method.client_streaming else kind


def _pattern(shape: str) -> str:
    """Turn the shape of a path into a Lua pattern."""
    parts = re.split(r"(\*\*|\*)", shape)
    texts = {"*": "[^/]+", "**": ".+"}
    return "^" + "".join(texts.get(part) or re.sub(r"([^A-Za-z0-9/_])", r"%\1", part) for part in parts) + "$"


def _message(message: Descriptor, types: dict[str, dict[str, str]]) -> str:
    if message.file.package == "google.protobuf" and message.name in _WELL_KNOWN:
        return _WELL_KNOWN[message.name]
    if message.full_name not in types:
        fields = types[message.full_name] = {}
        for field in message.fields:
            kind = _field(field, types)
            # "Parsers accept both the lowerCamelCase name and the original proto field name."
            fields[field.name] = fields[field.json_name] = kind
    return "@" + message.full_name


def _field(field: FieldDescriptor, types: dict[str, dict[str, str]]) -> str:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            return "{" + _field(field.message_type.fields_by_name["value"], types)
        kind = _message(field.message_type, types)
    else:
        kind = _TEXTS.get(field.cpp_type, "n")
    return "[" + kind if field.is_repeated else kind


def _table(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"[{_table(key)}]={_table(inner)}" for key, inner in sorted(value.items())) + "}"
    if isinstance(value, list | tuple):
        return "{" + ",".join(map(_table, value)) + "}"
    if isinstance(value, str):
        # Names of contracts and patterns of paths; anything else is written as bytes in decimal.
        return (
            '"'
            + "".join(c if (c.isalnum() and c.isascii()) or c in "._/[]^$+@*%{-: " else _bytes(c) for c in value)
            + '"'
        )
    return str(value)


def _bytes(text: str) -> str:
    return "".join(f"\\{byte:03d}" for byte in text.encode())
