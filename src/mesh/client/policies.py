"""The policies a channel goes by: the contract's, an operator's override from the registry, and what its maker said."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mesh.contract.policies import policies_of, read_override
from mesh.errors import ContractError
from mesh.policy import DEFAULT_POLICY, BalancerPolicy, BreakerPolicy, MethodPolicy

if TYPE_CHECKING:
    from mesh.client.method import Method

_log = logging.getLogger("mesh.client")


class ServicePolicies:
    """Policies of one service's methods. An override takes effect with the next call."""

    def __init__(
        self,
        service: str,
        given: Mapping[str, MethodPolicy] | None = None,
        balancer: BalancerPolicy | None = None,
    ) -> None:
        """`given`, by path, and `balancer` go over everything else. Raises ContractError if the contract's policies
        make no sense.
        """
        self._balancer = balancer
        self._service = service
        self._given = dict(given or {})
        self._methods: weakref.WeakSet[Method] = weakref.WeakSet()
        self._now: Mapping[str, MethodPolicy] = {**policies_of(service), **self._given}

    @property
    def breaker(self) -> BreakerPolicy:
        """The policy of the endpoints' breakers. A breaker stands for all methods, so it goes by the contract's first,
        which has the service's policy unless it says otherwise.
        """
        return next(iter(self._now.values()), DEFAULT_POLICY).breaker

    @property
    def balancer(self) -> BalancerPolicy:
        """The balancer of the whole channel, by the same rule; only its keys are each method's own."""
        return self._balancer or next(iter(self._now.values()), DEFAULT_POLICY).balancer

    def of(self, path: str) -> MethodPolicy:
        """Return the policy of a method."""
        policy = self._now.get(path, DEFAULT_POLICY)
        return policy if self._balancer is None else policy._replace(balancer=self._balancer)

    def follow(self, method: Method) -> None:
        """Keep the policy of this method up to date."""
        self._methods.add(method)

    def override(self, text: bytes | None) -> None:
        """Take over an operator's override, protobuf JSON, or its end. Nonsense is logged and ignored."""
        try:
            contract = policies_of(self._service, read_override(text) if text is not None else None)
        except ContractError as e:
            _log.warning("ignored the policy of %s: %s", self._service, e, extra={"event.action": "policy-refused"})
            return
        self._now = {**contract, **self._given}
        for method in self._methods:
            method.go_by(self.of(method.path))
