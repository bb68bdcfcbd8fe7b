"""Numbers as people read them: ends of axes, counts, times. Shared by the plots and the table."""

from __future__ import annotations

import math

_ROUND = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def ceiling(value: float) -> float:
    """Return the next round number from `value` up."""
    if value <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(size * r for r in _ROUND if size * r >= value * (1 - 1e-9))


def ticks(duration: float) -> list[float]:
    """Return about six round times from 0 to `duration`."""
    step = next(s for s in (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, math.inf) if duration / s <= 7)
    return [0.0] if step == math.inf else [n * step for n in range(int(duration / step) + 1)]


def counted(value: float) -> str:
    """Write a count: "850", "1.5k", "12k"."""
    if value < 1000:
        return f"{value:.3g}"
    return f"{value / 1000:.3g}k"


def seconds(value: float | None) -> str:
    """Write a time: "12 ms", "1.3 s", "2 min"; "–" where there is none."""
    if value is None:
        return "–"
    if value < 0.0095:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"
