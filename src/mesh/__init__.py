"""A gRPC service mesh inside your Python process: the contract is the configuration.

    import mesh

    async with mesh.connect("users.v1.UserService") as channel: ...   # a grpc.aio.Channel for any generated stub
    await mesh.serve(MyServicer())                                    # serve, register, drain, leave

What may be imported is what stands in `__all__`; everything else may change. Names are loaded when they are first
used, so that `import mesh` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh import blocking as blocking
    from mesh.client.channel import Channel as Channel
    from mesh.client.connect import connect as connect
    from mesh.client.errors import CallError as CallError
    from mesh.client.errors import attempts as attempts
    from mesh.client.interceptors import BreakerInterceptor as BreakerInterceptor
    from mesh.client.interceptors import RetryInterceptor as RetryInterceptor
    from mesh.errors import InvalidName as InvalidName
    from mesh.errors import MeshError as MeshError
    from mesh.errors import Refusal as Refusal
    from mesh.errors import SettingsError as SettingsError
    from mesh.instance import AttemptRecord as AttemptRecord
    from mesh.memory import MemoryStore as MemoryStore
    from mesh.policy import Balancer as Balancer
    from mesh.policy import BalancerPolicy as BalancerPolicy
    from mesh.policy import BreakerPolicy as BreakerPolicy
    from mesh.policy import MethodPolicy as MethodPolicy
    from mesh.policy import RetryPolicy as RetryPolicy
    from mesh.resilience.hops import detached as detached
    from mesh.server import Server as Server
    from mesh.server import serve as serve
    from mesh.server.errors import refusal_of as refusal_of
    from mesh.settings import Settings as Settings
    from mesh.settings import TLSFiles as TLSFiles

# Where each public name lives.
_HOMES = {
    "AttemptRecord": "mesh.instance",
    "Balancer": "mesh.policy",
    "BalancerPolicy": "mesh.policy",
    "BreakerInterceptor": "mesh.client.interceptors",
    "BreakerPolicy": "mesh.policy",
    "CallError": "mesh.client.errors",
    "Channel": "mesh.client.channel",
    "InvalidName": "mesh.errors",
    "MemoryStore": "mesh.memory",
    "MeshError": "mesh.errors",
    "MethodPolicy": "mesh.policy",
    "Refusal": "mesh.errors",
    "RetryInterceptor": "mesh.client.interceptors",
    "RetryPolicy": "mesh.policy",
    "Server": "mesh.server",
    "Settings": "mesh.settings",
    "SettingsError": "mesh.errors",
    "TLSFiles": "mesh.settings",
    "attempts": "mesh.client.errors",
    "connect": "mesh.client.connect",
    "detached": "mesh.resilience.hops",
    "refusal_of": "mesh.server.errors",
    "serve": "mesh.server",
}

__all__ = [
    "AttemptRecord",
    "Balancer",
    "BalancerPolicy",
    "BreakerInterceptor",
    "BreakerPolicy",
    "CallError",
    "Channel",
    "InvalidName",
    "MemoryStore",
    "MeshError",
    "MethodPolicy",
    "Refusal",
    "RetryInterceptor",
    "RetryPolicy",
    "Server",
    "Settings",
    "SettingsError",
    "TLSFiles",
    "attempts",
    "blocking",
    "connect",
    "detached",
    "refusal_of",
    "serve",
]


def __getattr__(name: str) -> Any:
    if name == "blocking":
        return importlib.import_module("mesh.blocking")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mesh' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
