"""ECDS: a filter in Lua."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2, extension_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2

from mesh.xds.resources import Resource, pack

# The names that front.yaml asks for.
STRICT, REPEATS = "strict", "repeats"


def script(name: str, code: str) -> Resource:
    """Build the filter that runs `code`."""
    config = lua_pb2.Lua(default_source_code=base_pb2.DataSource(inline_string=code))
    return Resource.of(name, extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(config)))
