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
        self._next = 0.0

    def __repr__(self) -> str:
        return f"Lookout({self._stalls!r})"

    def look(self) -> None:
        """Look, unless that was done a moment ago."""
        pool = self._pool
        now = pool.clock.monotonic()
        if now < self._next or pool.closed:
            return
        self._next = now + _PAUSE
        slots = pool.roster.callable
        before = self._stalls.hanging()
        if not self._stalls.look([slot.connection for slot in slots], now):
            return
        hanging = self._stalls.hanging()
        for slot in slots:
            if slot.connection in hanging and slot.connection not in before:
                metrics.CLIENT_STALLS.labels(pool.service).inc()
                _log.info(
                    "%s of %s hangs: passed over until it answers",
                    slot.name,
                    pool.service,
                    extra={"event.action": "endpoint-hangs"},
                )
        pool.pass_over(hanging)
