"""Successful calls, counted in plain numbers and handed to the metrics a few times a second.

Two counters and a histogram cost 2 to 3 µs per call, a fiftieth of it; here a call adds its time to a list, and finding
its bucket is left for a loop over all of them. What the metrics page shows may be some milliseconds old. Failed calls
are counted at once, they are rare.
"""

from __future__ import annotations

import collections
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

# Prometheus reads every 15 s or so; a person who looks at the page after a call sees it.
_FLUSH_AFTER = 0.05


class Tally:
    """Counts for one method. Not locked: one loop, or one lock, owns it."""

    __slots__ = (
        "__weakref__", "_bounds", "_counters", "_flushed", "_histogram", "_later", "_scheduled", "_taken",
    )  # fmt: skip

    def __init__(
        self,
        counters: tuple[Counter, ...],
        histogram: Histogram,
        later: Callable[[float, Callable[[], object]], object],
        flushed: Callable[[], object] = lambda: None,
    ) -> None:
        """`later` has something done after so many seconds, by whoever owns this; `flushed` hears of it afterwards."""
        self._counters = counters
        self._histogram = histogram
        self._later = later
        self._flushed = flushed
        # Not public, and the same since 2018; a test holds the library to it. Publicly nothing adds many at once.
        self._bounds: list[float] = histogram._upper_bounds
        self._taken: list[float] = []
        self._scheduled = False

    def add(self, seconds: float) -> None:
        """Count a call that succeeded; its last attempt, and only that one, did too."""
        self._taken.append(seconds)
        if not self._scheduled:
            self._scheduled = True
            self._later(_FLUSH_AFTER, self._flush_again)

    def _flush_again(self) -> None:
        # While there are calls the timer goes on: beginning it anew wakes the loop once more.
        self._scheduled = bool(self._taken)
        if self._scheduled:
            try:
                self.flush()
            finally:
                self._later(_FLUSH_AFTER, self._flush_again)

    def flush(self) -> None:
        """Hand over what was counted."""
        taken, self._taken = self._taken, []
        for counter in self._counters:
            counter.inc(len(taken))
        for bucket, calls in collections.Counter(map(partial(bisect_left, self._bounds), taken)).items():
            self._histogram._buckets[bucket].inc(calls)
        self._histogram._sum.inc(sum(taken))
        self._flushed()
