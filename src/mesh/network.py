"""Where instances may be, if that is limited. Apart from `mesh.instance`: most processes never ask, and begin sooner
without the arithmetic of addresses.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from mesh.errors import InvalidName
from mesh.instance import Endpoint

_PLACE = re.compile(r"([^/]+/\d{1,3})(?::(\d{1,5})(?:-(\d{1,5}))?)?|[^/]+")


@dataclass(frozen=True, slots=True)
class Network:
    """Where instances may be: a block of IP addresses, and the ports there."""

    block: ipaddress.IPv4Network | ipaddress.IPv6Network
    low: int = 1
    high: int = 65535

    def __contains__(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint lies here. One with a name does not: what it means can change after it was checked."""
        try:
            address = ipaddress.ip_address(endpoint.host.strip("[]"))
        except ValueError:
            return False
        return address in self.block and self.low <= endpoint.port <= self.high

    def __str__(self) -> str:
        return str(self.block) if (self.low, self.high) == (1, 65535) else f"{self.block}:{self.low}-{self.high}"

    @classmethod
    def parse(cls, text: str) -> Network:
        """Read "10.0.0.0/8", "10.0.0.0/8:50051" or "10.0.0.0/8:50000-50999"; raise InvalidName on anything else."""
        found = _PLACE.fullmatch(text)
        try:
            block, low, high = found.groups() if found else (text, None, None)
            network = cls(ipaddress.ip_network(block or text), int(low or 1), int(high or low or 65535))
        except ValueError as e:
            raise InvalidName(f"{text[:80]!r} is no network: write e.g. 10.0.0.0/8, or 10.0.0.0/8:50000-50999") from e
        if not 1 <= network.low <= network.high <= 65535:
            raise InvalidName(f"{text[:80]!r} has no such ports: write e.g. 10.0.0.0/8:50000-50999")
        return network
