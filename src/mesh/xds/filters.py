"""Which filters of envoy/front.yaml a route goes through: what a call does not need it does not pay for.

A JSON call begins on the catch-all route and gets its method's route after the transcoder; a gRPC call has its method's
route from the beginning. So `strict` and the buffer for JSON bodies stand on the catch-all alone.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2

from mesh.xds.resources import pack
from mesh.xds.scripts import REPEATS, STRICT

BUFFER = "envoy.filters.http.buffer"

# A gRPC message that is larger than an instance takes shall be refused by the instance, with the right status; so the
# front takes more where it waits for the whole message.
_MAX_MESSAGE = 4 * 1024 * 1024

# In the place of `strict`, whose refusals are 422 until front.yaml makes them 400 with this text.
_NO_TIME = """function envoy_on_request(handle)
  handle:respond({[":status"] = "422"}, "The header grpc-timeout wants a number and a unit, H, M, S, m, u or n: 800m.")
end"""

Filters = dict[str, Any]


def of_catch_all(*, body: bool) -> Filters:
    """JSON before the transcoder. Without a body there is nothing to wait for and nothing to check."""
    return {} if body else {BUFFER: _off(), STRICT: _off()}


def of_no_time() -> Filters:
    """JSON whose caller names a time that is none: refused."""
    return {BUFFER: _off(), STRICT: pack(lua_pb2.LuaPerRoute(source_code=base_pb2.DataSource(inline_string=_NO_TIME)))}


def of_method(*, marked: bool, repeated: bool) -> Filters:
    """gRPC, and JSON after the transcoder. marked: its calls are looked into for a request_id. repeated: counted."""
    buffer = buffer_pb2.BufferPerRoute(buffer=buffer_pb2.Buffer(max_request_bytes={"value": _MAX_MESSAGE}))
    filters = {BUFFER: pack(buffer) if marked else _off(), STRICT: _off()}
    if not marked and not repeated:
        filters[REPEATS] = pack(lua_pb2.LuaPerRoute(disabled=True))
    return filters


def _off() -> Any:
    return pack(route_components_pb2.FilterConfig(disabled=True))
