"""What happened, as it happens: one line per call that ended and one per attempt that was sent. What it adds up to is
`report`.
"""

from __future__ import annotations

from array import array


class Tally:
    """Columns, not objects: a run has hundreds of thousands of calls."""

    __slots__ = ("attempts", "began", "ok", "refused", "sent", "took")

    def __init__(self) -> None:
        self.began = array("d")
        """Per ended call: when it began."""
        self.took = array("d")
        """Per ended call: seconds until its end."""
        self.ok = bytearray()
        """Per ended call: 1 if it was answered in time."""
        self.attempts = bytearray()
        """Per ended call: attempts made for it."""
        self.sent = array("d")
        """When each attempt was sent."""

    def call_ended(self, began: float, now: float, attempts: int, *, ok: bool) -> None:
        """Count a call."""
        self.began.append(began)
        self.took.append(now - began)
        self.ok.append(ok)
        self.attempts.append(attempts)
