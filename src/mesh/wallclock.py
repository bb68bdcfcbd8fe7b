"""The real clock and the real dice. The one file that may import `time` and `random`."""

from __future__ import annotations

import random
import time

from mesh.timers import sleep


class WallClock:
    """The machine's time."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """Wait on the running loop."""
        await sleep(seconds)


CLOCK = WallClock()
DICE = random.Random()  # noqa: S311  jitter and balancing, never secrets


def dice(seed: int) -> random.Random:
    """Return dice that fall the same way for the same seed."""
    return random.Random(seed)  # noqa: S311  chance that can be repeated, never secrets
