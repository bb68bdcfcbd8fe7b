"""An Envoy as a sidecar has it: one listener for gRPC, one cluster with the same instances, and nothing else.

No filters but the router, no access log, no retries: the least that a sidecar can cost. `python -m bench.sidecar
ADDRESS …` is the other half: a control plane that tells proxyless clients of these instances. It prints its address.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import bench  # noqa: F401  makes `support` importable
from bench.site import Process, Site
from mesh.controlplane import ControlPlane
from mesh.instance import Endpoint
from support.envoy import COMMAND
from support.ports import free_port
from support.views import Views, instance

SERVICE = "users.v1.UserService"
_FILTERS = "type.googleapis.com/envoy.extensions.filters"
_HTTP = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def start(site: Site, addresses: list[str]) -> tuple[Process, str]:
    """Start it with one worker, which is busy with one caller; return the process and its address."""
    listen = Endpoint("127.0.0.1", free_port())
    file = Path(site.folder, f"sidecar-{listen.port}.json")
    file.write_text(json.dumps(_config(listen, [Endpoint.parse(address) for address in addresses])))
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return site.start([str(COMMAND), "-c", str(file), *flags], name="sidecar"), str(listen)


def _config(listen: Endpoint, instances: list[Endpoint]) -> dict[str, object]:
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "sidecar",
        "codec_type": "HTTP2",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "instances", "timeout": "0s"}}],
                }
            ]
        },
    }
    cluster = {
        "name": "instances",
        "type": "STATIC",
        "lb_policy": "ROUND_ROBIN",
        "typed_extension_protocol_options": {
            _HTTP.rpartition("/")[2]: {"@type": _HTTP, "explicit_http_config": {"http2_protocol_options": {}}}
        },
        "load_assignment": {
            "cluster_name": "instances",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(i)}} for i in instances]}],
        },
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "grpc", "address": _address(listen), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(endpoint: Endpoint) -> dict[str, object]:
    return {"socket_address": {"address": endpoint.host, "port_value": endpoint.port}}


async def _serve(addresses: list[str]) -> None:
    views = Views()
    contract = views.add_contract(SERVICE)
    ports = [Endpoint.parse(address).port for address in addresses]
    views.set(SERVICE, *(instance(SERVICE, n, port, contract=contract) for n, port in enumerate(ports)))
    async with ControlPlane(views) as plane:
        print(plane.endpoint, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
