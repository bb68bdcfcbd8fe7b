"""A source for the control plane that tests move by hand, in place of a resolver and a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mesh.contract import descriptors
from mesh.instance import Endpoint, Instance, State, View


@dataclass
class Views:
    """What the registry would tell. `set` replaces a service's instances and tells everybody."""

    views: dict[str, View] = field(default_factory=dict)
    policies: dict[str, bytes] = field(default_factory=dict)
    contracts: dict[str, bytes] = field(default_factory=dict)
    silent: bool = False
    """While True, subscribers are told nothing: the store was not read yet."""

    def __post_init__(self) -> None:
        self._of_views: list[Callable[[Mapping[str, View]], None]] = []
        self._of_policies: list[Callable[[Mapping[str, bytes]], None]] = []

    def add_contract(self, *services: str) -> str:
        """Keep the contract of linked stubs; return its digest."""
        contract = descriptors.descriptor_set(services)
        self.contracts[descriptors.digest(contract)] = contract
        return descriptors.digest(contract)

    def set(self, service: str, *instances: Instance) -> None:
        """Replace a service's instances."""
        self.views = {**self.views, service: View.of(service, instances)}
        self.tell()

    def set_policy(self, service: str, policy: bytes) -> None:
        """Replace a service's override."""
        self.policies = {**self.policies, service: policy}
        for listener in self._of_policies:
            listener(self.policies)

    def tell(self) -> None:
        """Tell everybody the views."""
        if not self.silent:
            for listener in self._of_views:
                listener(self.views)

    def subscribe_all(self, listener: Callable[[Mapping[str, View]], None]) -> Views:
        self._of_views.append(listener)
        if not self.silent:
            listener(self.views)
        return self

    def subscribe_policies(self, listener: Callable[[Mapping[str, bytes]], None]) -> Views:
        self._of_policies.append(listener)
        listener(self.policies)
        return self

    async def contract(self, digest: str) -> bytes | None:
        return self.contracts.get(digest)

    def close(self) -> None:
        """Nothing to let go of."""


def instance(
    service: str, number: int, port: int, *, state: State = State.READY, contract: str = "", host: str = "127.0.0.1"
) -> Instance:
    """Make an instance of a service."""
    return Instance(service, f"i-{number}", Endpoint(host, port), state=state, contract=contract)
