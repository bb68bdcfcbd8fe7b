"""How long to wait before the next try at what must be tried for ever: a lost connection, a lost registration.

Short pauses at first, because most breaks are a restart; then capped below a second, because whoever comes back shall
be found at once; always jittered, so that a fleet does not return in one instant. It never gives up: go-zero does not
either, and Kratos, which gives up after five tries, loses its instances.
"""

from __future__ import annotations

FIRST = 0.05
LONGEST = 0.5
# Checking a password costs etcd 0.1 s of CPU; a fleet with a wrong one must not keep it busy.
_PATIENCE = 10.0


class Reconnect:
    """Pauses between tries. `failures` counts those in a row."""

    def __init__(self, first: float = FIRST, longest: float = LONGEST) -> None:
        self._first = first
        self._longest = longest
        self.failures = 0

    def worked(self) -> None:
        """Begin anew with short pauses."""
        self.failures = 0

    def failed(self, draw: float) -> float:
        """Count a failure and return the seconds to wait, half of them by chance. `draw` is from [0, 1)."""
        pause = min(self._longest, self._first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return pause * (0.5 + draw / 2)

    def refused(self, draw: float) -> float:
        """Count a refusal and return the seconds to wait: longer, since only a person can help."""
        return self.failed(draw) * _PATIENCE
