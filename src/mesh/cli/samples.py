"""The three commands to try, written for whatever service is registered: curl, grpcurl, and a Python client.

What can be called without knowing the service is read from its contract: an HTTP rule without variables in its path, a
method that has no side effects.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.api import annotations_pb2, field_behavior_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError

from mesh.settings import TLSFiles

# What fits a terminal of the usual 80 columns.
_WIDTH = 79
_WORDS = {"name": "Ada", "email": "ada@example.com"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to try: what it is, and the text to paste into a shell."""

    title: str
    text: str


def samples(service: str, contract: bytes | None, edge: str, tls: TLSFiles | None, env: str) -> tuple[Sample, ...]:
    """Return what to try against `service` at `edge`. `env` is the file that points a shell at the stack."""
    found = _find(service, contract)
    if found is None:
        return (Sample("grpcurl", f"grpcurl {_grpcurl_tls(tls)} {edge} list"),)
    method = _harmless(found)
    told = [Sample("grpcurl", _folded(["grpcurl", _grpcurl_tls(tls), f"{edge} {service}/{method.name}"]))]
    rule = next(_http_rules(found), None)
    if rule is not None:
        told.insert(0, Sample("curl", _curl(*rule, edge=edge, tls=tls)))
    told.append(Sample("Python", _python(found, method, env)))
    return tuple(told)


def _find(service: str, contract: bytes | None) -> ServiceDescriptor | None:
    if contract is None:
        return None
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in descriptor_pb2.FileDescriptorSet.FromString(contract).file:
            pool.Add(file)
        return pool.FindServiceByName(service)
    except (DecodeError, TypeError, KeyError):
        return None


def _harmless(service: ServiceDescriptor) -> MethodDescriptor:
    """Return a unary method that changes nothing and, by preference, asks for nothing."""

    def rank(method: MethodDescriptor) -> tuple[bool, bool, bool]:
        options = _options(method)
        reads = options.idempotency_level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
        streams = method.client_streaming or method.server_streaming
        return (streams, not reads, any(map(_is_required, method.input_type.fields)))

    return min(service.methods, key=rank)


def _http_rules(service: ServiceDescriptor) -> Iterator[tuple[str, str, Descriptor | None]]:
    """Yield (verb, path, body) of bindings without variables, those that create before those that read."""
    bindings = []
    for method in service.methods:
        rule = _options(method).Extensions[annotations_pb2.http]
        for binding in (rule, *rule.additional_bindings):
            verb = binding.WhichOneof("pattern")
            path = getattr(binding, verb) if verb in ("get", "post", "put") else ""
            if path and "{" not in path and not (method.client_streaming or method.server_streaming):
                bindings.append((verb.upper(), path, _body(method, binding)))
    yield from sorted(bindings, key=lambda binding: binding[0] != "POST")


def _body(method: MethodDescriptor, rule: http_pb2.HttpRule) -> Descriptor | None:
    if rule.body in ("", "*"):
        return method.input_type if rule.body else None
    return method.input_type.fields_by_name[rule.body].message_type


def _curl(verb: str, path: str, body: Descriptor | None, *, edge: str, tls: TLSFiles | None) -> str:
    words = ["curl -s"]
    if tls is not None:
        words[0] += f" --cacert {_path(tls.ca)}"
        words.append(f"--cert {_path(tls.cert)} --key {_path(tls.key)}")
    words.append(f"{'' if tls is None else 'https://'}{edge}{path}")
    if body is not None:
        words.append(f"-d {shlex.quote(json.dumps(_example(body), separators=(',', ':')))}")
        if verb != "POST":
            words[0] += f" -X {verb}"
    return _folded(words)


def _folded(words: list[str]) -> str:
    """Return a command on one line, or on several where it would be too long for a terminal."""
    line = " ".join(words)
    return line if len(line) <= _WIDTH else " \\\n  ".join(words)


def _example(message: Descriptor) -> dict[str, str]:
    required = [field for field in message.fields if _is_required(field)]
    return {
        field.json_name: _WORDS.get(field.name, "hello")
        for field in required or message.fields
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
    }


def _python(service: ServiceDescriptor, method: MethodDescriptor, env: str) -> str:
    source, module = _module(service.file)
    request_source, request_module = _module(method.input_type.file)
    foreign = "" if request_module == module else f"{request_source}{request_module}\n"
    return f"""\
. {shlex.quote(env)} && {_interpreter()} - <<'END'
import mesh.blocking
{foreign}{source}{module}, {module}_grpc
with mesh.blocking.connect("{service.full_name}") as channel:
    stub = {module}_grpc.{service.name}Stub(channel)
    print(stub.{method.name}({request_module}.{method.input_type.name}()))
END"""


def _module(file: FileDescriptor) -> tuple[str, str]:
    """Return how protoc's Python module of a file is imported: ("from users.v1 import ", "users_pb2")."""
    package, _, stem = file.name.removesuffix(".proto").replace("/", ".").replace("-", "_").rpartition(".")
    return (f"from {package} import " if package else "import "), f"{stem}_pb2"


def _interpreter() -> str:
    """Return this Python as one would type it here."""
    ours = Path(sys.executable)
    if (found := shutil.which("python")) and Path(found).parent == ours.parent:
        return "python"
    return shlex.quote(str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours))


def _options(method: MethodDescriptor) -> descriptor_pb2.MethodOptions:
    """Return the options with the annotations known to this process, whatever pool the method came from."""
    options: descriptor_pb2.MethodOptions = descriptor_pb2.MethodOptions.FromString(
        method.GetOptions().SerializeToString()
    )
    return options


def _is_required(field: FieldDescriptor) -> bool:
    options = descriptor_pb2.FieldOptions.FromString(field.GetOptions().SerializeToString())
    return field_behavior_pb2.REQUIRED in options.Extensions[field_behavior_pb2.field_behavior]


def _grpcurl_tls(tls: TLSFiles | None) -> str:
    if tls is None:
        return "-plaintext"
    return f"-cacert {_path(tls.ca)} -cert {_path(tls.cert)} -key {_path(tls.key)}"


def _path(path: object) -> str:
    return shlex.quote(str(path))
