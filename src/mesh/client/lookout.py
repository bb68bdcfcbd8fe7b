"""Looks out for endpoints that hang (`mesh.resilience.stall`), a few times a second while calls succeed: where none
does, there is nobody else to go to. So it costs calls nothing, and an idle client sleeps.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mesh.resilience.stall import Stalls
from mesh.telemetry import metrics

if TYPE_CHECKING:
    from mesh.client.pool import Pool

_log = logging.getLogger("mesh.client")

# However often it is asked for a look.
_PAUSE = 0.04


class Lookout:
    """Keeps those out of a pool's picks that hang."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._stalls = Stalls()
        self._told: frozenset[object] = frozenset()
        self._next = 0.0

    def __repr__(self) -> str:
        return f"Lookout({self._stalls!r})"

    def look(self, now: float) -> bool:
        """Look, unless that was done a moment ago; return whether there is something to `tell`. In any thread."""
        if now < self._next or self._pool.closed:
            return False
        self._next = now + _PAUSE
        self._stalls.look([slot.connection for slot in self._pool.roster.callable], now)
        return self._stalls.hanging() != self._told

    def tell(self) -> None:
        """Have those passed over that hang now, and no others. On the loop."""
        pool = self._pool
        if pool.closed:
            return
        before, self._told = self._told, self._stalls.hanging()
        for slot in pool.roster.callable:
            if slot.connection in self._told and slot.connection not in before:
                metrics.CLIENT_STALLS.labels(pool.service).inc()
                _log.info(
                    "%s of %s hangs: passed over until it answers",
                    slot.name,
                    pool.service,
                    extra={"event.action": "endpoint-hangs"},
                )
        pool.pass_over(self._told)
