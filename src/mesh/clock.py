"""Time and chance as ports. Decisions take `now` and draws as arguments; loops have a `Clock` and `Dice` given.

The real ones are in `mesh.wallclock`; tests and the simulation bring their own.
"""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Where time comes from. All in seconds."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back, whatever happens to the calendar."""
        ...

    def time(self) -> float:
        """Seconds since 1970, UTC. For records that people read, never for decisions."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait at least so long."""
        ...


class Dice(Protocol):
    """Where chance comes from."""

    def random(self) -> float:
        """A draw from [0, 1)."""
        ...

    def uniform(self, low: float, high: float, /) -> float:
        """A draw from [low, high]."""
        ...

    def randrange(self, stop: int, /) -> int:
        """A whole number from [0, stop)."""
        ...
