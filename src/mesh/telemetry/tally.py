"""Successful calls, counted in plain numbers and handed to the metrics when those are read, or a few times a second.

Two counters and a histogram cost 2 to 3 µs per call, a fiftieth of it; here a call adds its time to a list, and finding
its bucket is left for a loop over all of them. Who reads the metrics has them handed over first (`meters`), so nothing
is missing there. Failed calls are counted at once, they are rare.

There is no timer in it: an event loop that waits for a time does more in each of its turns than one that waits for news
alone, which a stream pays for with each message.
"""

from __future__ import annotations

import collections
import os
import threading
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

EVERY = 0.05
"""Seconds after which calls hand over what was counted: the lists stay short, though nobody may ever read. Each of them
does so where it is 0.
"""

_tallies: dict[Any, _Tally] = {}
"""By histogram: one for each method known to this process, and for good. The metrics have as many."""
_flushing: Any = threading.RLock()
_due = 0.0


def tally_of(histogram: Histogram, *counters: Counter) -> Callable[[float], None]:
    """Return what counts a call of so many seconds that succeeded; its last attempt, and only that one, did too. To be
    called in any thread.
    """
    found = _tallies.get(histogram)
    if found is None:
        found = _tallies.setdefault(histogram, _Tally(histogram, counters))
    return found.taken.append


def flush(now: float | None = None) -> None:
    """Hand over what was counted: at once for somebody who reads, without `now`. A call has it done by its clock, and
    leaves it to another who did it a moment ago or does it now. A signal handler or a finalizer that interrupts this in
    the middle of it goes without.
    """
    global _due
    if (now is not None and now < _due) or _flushing._is_owned():
        return
    if _flushing.acquire(blocking=now is None or not EVERY):
        try:
            if now is not None:
                _due = now + EVERY
            for tally in tuple(_tallies.values()):
                if tally.taken:
                    tally.flush()
        finally:
            _flushing.release()


def at_once() -> None:
    """Have each call hand over by itself: whoever reads is another process, and does not ask."""
    global EVERY, _due
    EVERY = _due = 0.0


def _forked() -> None:
    global _flushing
    _flushing = threading.RLock()  # a thread that had it is not there any more


os.register_at_fork(after_in_child=_forked)


class _Tally:
    """Counts of one method."""

    __slots__ = ("_bounds", "_counters", "_histogram", "taken")

    def __init__(self, histogram: Histogram, counters: tuple[Counter, ...]) -> None:
        self._counters = counters
        self._histogram = histogram
        # Not public, and the same since 2018; a test holds the library to it. Publicly nothing adds many at once.
        self._bounds: list[float] = histogram._upper_bounds
        self.taken: list[float] = []

    def flush(self) -> None:
        # Others may add meanwhile, at the end.
        taken = self.taken[:]
        del self.taken[: len(taken)]
        for counter in self._counters:
            counter.inc(len(taken))
        for bucket, calls in collections.Counter(map(partial(bisect_left, self._bounds), taken)).items():
            self._histogram._buckets[bucket].inc(calls)
        self._histogram._sum.inc(sum(taken))
