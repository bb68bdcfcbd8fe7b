"""Fewer calls for a newcomer, while its caches, pools and compilers warm up: Envoy's slow start, as a factor on its
weight that rises from a floor to 1. Balancers with weights apply it; see `weighted` and `two_choices`.

    factor = max(floor, (age / window) ^ (1 / aggression))

Where all endpoints are new, as after a release, all factors are equal and nothing is slowed (Envoy says the same).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlowStart:
    """How a newcomer rises. `window` in seconds; 0 is off."""

    window: float = 0.0
    aggression: float = 1.0
    """1 is a straight line; more lets it rise sooner (Envoy's default is 1)."""
    floor: float = 0.1
    """Share of its weight that it begins with (Envoy's default is 10 %)."""

    def factor(self, age: float) -> float:
        """Return the share of its weight that an endpoint of this age, in seconds, is given."""
        age = max(age, 0.0)
        if age >= self.window:
            return 1.0
        return max(self.floor, float((age / self.window) ** (1.0 / self.aggression)))


OFF = SlowStart()
