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

# Where the library's numbers are files, whoever reads them is another process and does not ask.
EVERY = 0.0 if "PROMETHEUS_MULTIPROC_DIR" in os.environ else 0.05
"""Seconds after which calls hand over what was counted: the lists stay short, though nobody may ever read."""

_tallies: dict[Any, _Tally] = {}
"""By histogram: one for each method known to this process, and for good. The metrics have as many."""
_flushing = threading.Lock()
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
    leaves it to another who did it a moment ago or does it now, in another thread or in the same one, which a signal
    handler or a finalizer has interrupted in the middle of it.
    """
    global _due
    if (now is None or now >= _due) and _flushing.acquire(blocking=now is None):
        try:
            if now is not None:
                _due = now + EVERY
            for tally in tuple(_tallies.values()):
                if tally.taken:
                    tally.flush()
        finally:
            _flushing.release()


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
