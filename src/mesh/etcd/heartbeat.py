"""When leases are kept alive and when they count as lost: the decisions, without waiting.

Rules:
- A lease is kept alive every third of its TTL (go-zero, clientv3), and at once on a new stream.
- Its end is counted from when the last answered sign of life was *sent*: etcd's own count can only be later.
- It is lost when etcd says so (TTL 0) or when that end has passed without an answer.
- A stream on which an answer is overdue is broken, whatever its sockets say.
"""

from __future__ import annotations

from dataclasses import dataclass

# Seconds after which an unanswered sign of life breaks the stream. Longer than a slow etcd takes (2 s) where the TTL
# admits it; at TTL 10 a hung member is noticed at most 3.3 + 3.3 s after it hung, and 3.3 s are left for another one.
_PATIENCE_AT_LEAST = 1.0
_PATIENCE_AT_MOST = 3.5


@dataclass(slots=True)
class _Pulse:
    """What is known of one lease. `sent` is when the oldest unanswered sign of life went out, or None."""

    ttl: float
    ends: float
    next: float
    sent: float | None = None


class Heartbeat:
    """The leases of one session."""

    def __init__(self) -> None:
        self._pulses: dict[int, _Pulse] = {}

    def __len__(self) -> int:
        return len(self._pulses)

    def __repr__(self) -> str:
        return f"Heartbeat({self._pulses})"

    def grant(self, lease: int, ttl: float, asked_at: float) -> None:
        """Begin with a lease that was asked for at that time."""
        self._pulses[lease] = _Pulse(ttl, asked_at + ttl, asked_at + ttl / 3)

    def forget(self, lease: int) -> bool:
        """Stop with a lease; return whether it was known."""
        return self._pulses.pop(lease, None) is not None

    def reconnect(self, now: float) -> None:
        """Begin a new stream: whatever was sent on the old one will not be answered."""
        for pulse in self._pulses.values():
            pulse.sent, pulse.next = None, now

    def due(self, now: float) -> list[int]:
        """Return the leases whose sign of life is to be sent now, and note that it was."""
        due = [lease for lease, pulse in self._pulses.items() if pulse.next <= now]
        for lease in due:
            pulse = self._pulses[lease]
            pulse.next = now + pulse.ttl / 3
            pulse.sent = now if pulse.sent is None else pulse.sent
        return due

    def answer(self, lease: int, ttl: float, now: float) -> bool:
        """Take an answer; return False where it says that the lease has ended."""
        pulse = self._pulses.get(lease)
        if pulse is None:
            return True
        if ttl <= 0:
            del self._pulses[lease]
            return False
        pulse.ends = (now if pulse.sent is None else pulse.sent) + ttl
        pulse.sent = None
        return True

    def expire(self, now: float) -> list[int]:
        """Return the leases whose end has passed, and stop with them."""
        ended = [lease for lease, pulse in self._pulses.items() if pulse.ends <= now]
        for lease in ended:
            del self._pulses[lease]
        return ended

    def is_overdue(self, now: float) -> bool:
        """Whether an answer should have come by now."""
        return any(p.sent is not None and now - p.sent > _patience(p.ttl) for p in self._pulses.values())

    def next_wake(self, now: float) -> float:
        """Return how long nothing needs to be done."""
        moments = [p.next for p in self._pulses.values()]
        moments += [p.ends for p in self._pulses.values()]
        moments += [p.sent + _patience(p.ttl) for p in self._pulses.values() if p.sent is not None]
        return max(0.0, min(moments, default=now + _PATIENCE_AT_MOST) - now)


def _patience(ttl: float) -> float:
    return max(_PATIENCE_AT_LEAST, min(_PATIENCE_AT_MOST, ttl / 3))
