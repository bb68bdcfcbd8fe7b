"""A snapshot: everything that one kind of client should hold, as a value that is checked before anyone sees it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mesh.instance import Instance
from mesh.policy import DEFAULT_POLICY, MethodPolicy
from mesh.xds.resources import SHORT, Reference, Resource


class Audience(enum.StrEnum):
    """Who asks: the two understand different parts of xDS."""

    ENVOY = "envoy"
    GRPC = "grpc"

    @classmethod
    def of(cls, user_agent: str) -> Audience:
        """Tell from the node's user_agent_name: gRPC's clients say "gRPC C-core", "grpc-go" or "grpc-java"."""
        return cls.GRPC if user_agent.lower().startswith("grpc") else cls.ENVOY


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service: its path, whether a side is a stream, how it is treated.

    request_id: number of the request's field of that name, 0 where there is none.
    """

    path: str
    streaming: bool = False
    policy: MethodPolicy = DEFAULT_POLICY
    request_id: int = 0

    @property
    def is_marked(self) -> bool:
        """Whether a call that carries a request_id may be repeated, and another one may not."""
        return bool(self.request_id) and not self.streaming and not self.policy.idempotent

    @property
    def is_repeated(self) -> bool:
        """Whether some of its calls are sent again when the first attempt failed."""
        attempts = max(self.policy.retry.max_attempts, self.policy.hedging.max_attempts)
        return (self.is_marked or self.policy.idempotent) and attempts > 1


@dataclass(frozen=True, slots=True)
class Service:
    """What is known of a service: where it runs and what its contract says. No methods: the contract is unknown."""

    name: str
    instances: tuple[Instance, ...] = ()
    methods: tuple[Method, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Resources by type and name."""

    resources: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)

    @classmethod
    def of(cls, resources: Iterable[Resource]) -> Snapshot:
        """Sort resources by type and name."""
        sorted_ = sorted(resources, key=lambda r: (r.type_url, r.name))
        types: dict[str, dict[str, Resource]] = {}
        for resource in sorted_:
            types.setdefault(resource.type_url, {})[resource.name] = resource
        return cls(types)

    def all(self, type_url: str) -> Mapping[str, Resource]:
        """Return the resources of a type."""
        return self.resources.get(type_url, {})

    def missing(self, given: frozenset[Reference] = frozenset()) -> tuple[str, ...]:
        """Name what is needed by some resource and neither here nor `given`; empty: the snapshot is consistent."""
        return tuple(
            f"{SHORT.get(resource.type_url, resource.type_url)} {resource.name} needs {SHORT.get(kind, kind)} {name}"
            for by_name in self.resources.values()
            for resource in by_name.values()
            for kind, name in resource.needs
            if name not in self.all(kind) and (kind, name) not in given
        )
