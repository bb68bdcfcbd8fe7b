"""How much an endpoint can take, by its own word: the weight that gRFC A58 makes of load reports (ORCA).

    weight = queries per second / (utilisation + errors per second / queries per second × penalty)

An endpoint that serves 100 calls a second at half of its capacity could serve 200: that is its weight. A report is
believed when reports have been coming for 10 s (a fresh process says anything), and for 3 minutes after the last one.
https://github.com/grpc/proposal/blob/master/A58-client-side-weighted-round-robin-lb-policy.md
"""

from __future__ import annotations

BLACKOUT = 10.0
EXPIRATION = 180.0
ERROR_PENALTY = 1.0
"""A58's defaults, the first two in seconds."""


class ReportedWeight:
    """The weight of one endpoint, as it reports it."""

    __slots__ = ("_last", "_since", "_weight")

    def __init__(self) -> None:
        self._weight = 0.0
        self._since: float | None = None
        """First report in the present row of reports."""
        self._last = 0.0

    def __repr__(self) -> str:
        return f"ReportedWeight({self._weight:g})"

    def report(self, now: float, utilization: float, queries: float, errors: float) -> None:
        """Take over a report, the latter two per second. One without utilisation or queries says nothing."""
        # Written so that a NaN says nothing either. The least of floats is no load: its inverse is infinite, and such a
        # weight would make nothing of all others.
        if not (1e-9 < utilization < 1e9 and 0.0 < queries < 1e9):
            return
        penalty = errors / queries * ERROR_PENALTY if 0.0 < errors < 1e9 else 0.0
        self._forget_if_stale(now)
        if self._since is None:
            self._since = now
        self._last = now
        self._weight = queries / (utilization + penalty)

    def restart(self) -> None:
        """Begin the row of reports anew: the connection is a new one."""
        self._since = None

    def at(self, now: float) -> float:
        """Return the weight, or 0 where nothing is known that can be believed."""
        self._forget_if_stale(now)
        return self._weight if self._since is not None and now - self._since >= BLACKOUT else 0.0

    def _forget_if_stale(self, now: float) -> None:
        if now - self._last >= EXPIRATION:
            self._since = None
