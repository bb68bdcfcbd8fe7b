"""An Envoy without a control plane: envoy/front.yaml with everything that would arrive written into it, or with parts
left out, to see what these cost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage

from mesh.instance import Endpoint
from mesh.xds import clusters, filters, routes, scripts, transcoder  # noqa: F401  the types within, by their names
from mesh.xds.resources import CLUSTER, ENDPOINTS, EXTENSION, ROUTES
from support.ads import Ads

_FILTERS = (scripts.STRICT, transcoder.TRANSCODER, scripts.REPEATS)
LOG, BUDGET, BODIES, CALLERS, REST = "access log", "retry budget", "checks of bodies", "checks of headers", "the rest"
PARTS: Mapping[str, tuple[str, ...]] = {
    LOG: (),
    BUDGET: (scripts.REPEATS,),
    BODIES: (scripts.STRICT, filters.BUFFER),
    CALLERS: ("envoy.filters.http.rbac",),
    REST: ("envoy.filters.http.grpc_web",),
}
"""What can be left out, and the filters that are part of it. Transcoder and router cannot."""
_OF_MANAGER = {LOG: ("access_log",), CALLERS: ("early_header_mutation_extensions",), REST: ("local_reply_config",)}
_OF_CONFIG = {REST: ("overload_manager", "layered_runtime")}
_OF_ROUTE = {REST: ("retryPolicy", "hedgePolicy")}


def fixed(front: str, plane: Endpoint, service: str, without: Collection[str] = ()) -> str:
    """Return the text of a front.yaml with what this control plane would send for one service, without some parts."""
    config: dict[str, Any] = yaml.safe_load(front)
    told = asyncio.run(_told(plane, service))
    del config["dynamic_resources"]
    [listener] = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = told[ROUTES][routes.FRONT]
    for filter_ in manager["http_filters"]:
        if filter_.pop("config_discovery", None):
            filter_["typed_config"] = told[EXTENSION][filter_["name"]]["typedConfig"]
    cluster = told[CLUSTER][service]
    del cluster["edsClusterConfig"]
    config["static_resources"]["clusters"].append(
        {**cluster, "type": "STATIC", "loadAssignment": told[ENDPOINTS][service]}
    )
    for part in without:
        _leave_out(part, config, manager)
    return yaml.safe_dump(config, sort_keys=False)


def _leave_out(part: str, config: dict[str, Any], manager: dict[str, Any]) -> None:
    for name in _OF_CONFIG.get(part, ()):
        del config[name]
    for name in _OF_MANAGER.get(part, ()):
        del manager[name]
    manager["http_filters"] = [f for f in manager["http_filters"] if f["name"] not in PARTS[part]]
    for route in _routes(manager["route_config"]):
        for name in PARTS[part]:
            route.get("typedPerFilterConfig", {}).pop(name, None)
        for name in _OF_ROUTE.get(part, ()):
            route.get("route", {}).pop(name, None)


def _routes(told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for host in told["virtualHosts"]:
        tree = host["matcher"]
        for leaf in (*tree["matcherTree"]["exactMatchMap"]["map"].values(), tree["onNoMatch"]):
            yield from leaf["action"]["typedConfig"]["routes"]


async def _told(plane: Endpoint, service: str) -> dict[str, dict[str, Any]]:
    """Ask the control plane for everything, as an Envoy does; return it by type and name."""
    told: dict[str, dict[str, Any]] = {}
    names = {CLUSTER: (), ENDPOINTS: (service,), ROUTES: (routes.FRONT,), EXTENSION: _FILTERS}
    async with Ads(plane, "bench") as ads:
        for kind, asked in names.items():
            await ads.ask(kind, *asked)
            answer = await ads.take()
            told[kind] = dict(map(_read, answer.resources))
            await ads.answer(answer, *asked)
    return told


def _read(resource: AnyMessage) -> tuple[str, Any]:
    read = json.loads(json_format.MessageToJson(resource))
    del read["@type"]
    return read.get("name") or read["clusterName"], read
