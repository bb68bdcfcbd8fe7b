"""What an incoming call hands on to the calls made on its behalf: the time that is left, the extra attempts that are
left, its priority, and its end.

Python gRPC forgets all of it at every hop: the leaf of a chain believes it has for ever, and four hops with three
attempts each meet a dead leaf with 3⁴ = 81 calls for one. The rules here, for each call made on behalf of another:

  time       it ends no later than the call that it is made for.
  attempts   an attempt hands on how many extra attempts the whole road behind it may still make, in ATTEMPTS_LEFT. No
             entry means that nothing was spent: the policy of each method says how many there are. So a call that
             succeeds at once carries nothing, and clients that are not ours send nothing.
  mark       whoever was answered with a failure for good, after trying again or because the budget did not pay, says
             so upstream: its own failed answer carries "grpc-retry-pushback-ms: -1", which stops every gRPC client
             (gRFC A6; Finagle calls such an answer non-retryable), and "x-envoy-ratelimited", which stops Envoy. The
             hop next to the fault tries again; the others do not.
  priority   calls go on with the priority that they came with.
  end        a caller that hangs up ends asyncio handlers by their tasks; blocking calls are told by `cancel`.

The mark makes it 1 + extra attempts per call, and the budget 1.2 (docs/resilience.md). Where a mark is lost, because
the server died before it answered, the entry still bounds the road: h hops with e extra attempts make at most
C(h+e, e) calls, 15 instead of 81.

Ambient, as contextvars: tasks and `asyncio.to_thread` inherit it. Left out: the deadline on the wire, which
grpc-timeout carries; an allowance shared by the calls of one handler, because a stream of an hour would soon have
none left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

from mesh.resilience.retry import MAX_ATTEMPTS, PREVIOUS_ATTEMPTS, Failure, Stop, parse_pushback

ATTEMPTS_LEFT = "mesh-attempts-left"
PRIORITY = "mesh-priority"
STOP_RETRYING = "-1"
"""The value of grpc-retry-pushback-ms that ends retries (gRFC A6)."""

_PRIORITIES = {"critical": "critical", "default": "", "sheddable": "sheddable"}
_MOST = MAX_ATTEMPTS - 1
_SPENT = frozenset({Stop.ATTEMPTS, Stop.BUDGET, Stop.PUSHBACK, Stop.DEADLINE})

Metadata = Iterable[tuple[str, str | bytes]]


class Hop:
    """An incoming call, as the calls made on its behalf see it. Made for every call, so it reads metadata when asked.

    deadline: when the answer is due, by the process's monotonic clock.
    is_spent: whether trying again was tried, or could not be paid for, on its behalf.
    """

    __slots__ = ("_blocking", "_read", "_told", "deadline", "is_cancelled", "is_spent")

    def __init__(self, deadline: float, read: Callable[[], Metadata | None]) -> None:
        """`read` returns the call's metadata, any caller's: what it says is checked."""
        self.deadline = deadline
        self.is_spent = False
        self.is_cancelled = False
        self._read: Callable[[], Metadata | None] | None = read
        self._told: tuple[int | None, str] = (None, "")
        self._blocking: set[Callable[[], object]] | None = None

    def __repr__(self) -> str:
        left, priority = self.told()
        return f"Hop(until {self.deadline:.3f}, {left} extra attempts, {priority or 'default'} priority)"

    def told(self) -> tuple[int | None, str]:
        """Return the extra attempts left, None for as many as policies say, and the priority that came, or ""."""
        read = self._read
        if read is not None:
            self._read = None
            self._told = _told_by(read() or ())
        return self._told

    def failed(self, failure: Failure, stop: Stop) -> None:
        """Learn that a call on its behalf has failed for good."""
        if stop in _SPENT or (failure.pushback is not None and parse_pushback(failure.pushback) is None):
            self.is_spent = True

    def on_cancel(self, end: Callable[[], object]) -> None:
        """Have `end` called, perhaps at once and in any thread, if its caller hangs up."""
        if self._blocking is None:
            self._blocking = set()
        self._blocking.add(end)
        if self.is_cancelled:
            end()

    def forget(self, end: Callable[[], object]) -> None:
        """Call `end` no more."""
        if self._blocking is not None:
            self._blocking.discard(end)

    def close(self, cancelled: bool = False) -> None:
        """End: let go of the call's metadata, and of the blocking calls if the caller has hung up."""
        self._read = None
        if cancelled:
            self.is_cancelled = True
            for end in tuple(self._blocking or ()):
                end()


CURRENT: ContextVar[Hop | None] = ContextVar("mesh_hop", default=None)
"""The incoming call that this code runs for, if any."""


@contextlib.contextmanager
def detached() -> Iterator[None]:
    """Make calls on nobody's behalf: not bounded by the incoming call's deadline, attempts or end.

    For work that outlives the answer; tasks made inside stay detached:

        with mesh.detached():
            asyncio.create_task(send_mail(user))
    """
    token = CURRENT.set(None)
    try:
        yield
    finally:
        CURRENT.reset(token)


def handed_on(hop: Hop | None, allowed: int, spent: int) -> list[tuple[str, str]]:
    """Return the metadata of an attempt. allowed: attempts by the method's policy; spent: extra ones already made."""
    left, priority = hop.told() if hop is not None else (None, "")
    entries = [(PRIORITY, priority)] if priority else []
    if left is None and spent:
        left = _extra(allowed)
    if left is not None:
        entries.append((ATTEMPTS_LEFT, str(max(left - spent, 0))))
    return entries


def entries_of(hop: Hop | None, allowed: int, spent: int) -> list[tuple[str, str]]:
    """Return the same with the attempts made before, as gRFC A6 asks."""
    entries = handed_on(hop, allowed, spent)
    if spent:
        entries.append((PREVIOUS_ATTEMPTS, str(spent)))
    return entries


def deadline_of(hop: Hop | None, now: float, timeout: float | None) -> float:
    """Return when a call ends that was given so many seconds, or None for any number: with the incoming one at last."""
    own = now + timeout if timeout is not None else float("inf")
    return own if hop is None else min(own, hop.deadline)


def attempts_allowed(hop: Hop | None, allowed: int) -> int:
    """Return how many attempts a call may make, the first included: what its policy says, or what is left."""
    left = hop.told()[0] if hop is not None else None
    extra = _extra(allowed)
    return 1 + (extra if left is None else min(extra, left))


def parse_left(text: str | bytes) -> int | None:
    """Return the extra attempts that a caller says are left, capped; None for what is no number."""
    if not isinstance(text, str) or not (text.isascii() and text.isdigit()) or len(text) > 4:
        return None
    return min(int(text), _MOST)


def _extra(allowed: int) -> int:
    return max(min(allowed, MAX_ATTEMPTS) - 1, 0)


def _told_by(metadata: Metadata) -> tuple[int | None, str]:
    """Read an incoming call's entries. Of several numbers the smallest counts, because a handler may have copied what
    came to it; of several priorities the last, which is the caller's own.
    """
    left: int | None = None
    priority = ""
    for key, value in metadata:
        if key == ATTEMPTS_LEFT:
            said = parse_left(value)
            if said is not None:
                left = said if left is None else min(left, said)
        elif key == PRIORITY and value in _PRIORITIES:
            priority = _PRIORITIES[str(value)]
    return left, priority
