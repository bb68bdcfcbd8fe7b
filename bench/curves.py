"""Plots of cost against the size of a fleet, as SVG: made from the rows `discovery.*`, as the page is.

Written by hand: no library, no script, light and dark by the reader's choice. Both axes grow by factors of ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Row = Mapping[str, Any]
Point = Mapping[str, float]

_WIDTH, _HEIGHT, _COLUMNS = 460, 270, 2
_LEFT, _RIGHT, _TOP, _FOOT = 62, 104, 58, 46
_HEAD, _MARGIN = 74, 14
_TURNS = 4
_SIZES = range(-7, 17)  # powers of ten

_STYLE = """
  svg { --paper: #ffffff; --ink: #1f2430; --soft: #6b7280; --line: #e4e7ec;
        --c0: #5b6ee1; --c1: #0f8f9d; --c2: #c2711c; --c3: #c53a5b;
        font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #11151c; --ink: #e6e9ef; --soft: #9aa4b2; --line: #272e3a;
          --c0: #93a1ff; --c1: #3fc3cf; --c2: #eaa253; --c3: #f4798f; }
  }
  text { fill: var(--ink); } .soft { fill: var(--soft); } .title { font-size: 15px; font-weight: 600; }
  .name { font-size: 13px; font-weight: 600; } .paper { fill: var(--paper); }
  .grid { stroke: var(--line); stroke-width: 1; } .curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
  .faint { stroke-width: 1.25; stroke-dasharray: 3 3; } .faint, .dot { opacity: .75; }
"""
_COLOURS = "".join(f"\n  .s{n} {{ stroke: var(--c{n}); }} .f{n} {{ fill: var(--c{n}); }}" for n in range(_TURNS))


@dataclass(frozen=True)
class Curve:
    """One line: points of (instances, value). `label` stands at its end; a faint one is a baseline without a label."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    unit: str
    curves: Sequence[Curve]


def pictures(rows: Sequence[Row]) -> dict[str, str]:
    """Return the plots of these rows, by file name; none for what was not measured."""
    by_name = {row["row"]: row for row in rows}
    found: dict[str, str] = {}
    if curve := by_name.get("discovery.notice", {}).get("curve"):
        found["discovery.svg"] = _of_watchers(curve)
    if curve := by_name.get("discovery.plane", {}).get("curve"):
        found["discovery-plane.svg"] = _of_plane(curve)
    return found


def _of_watchers(points: Sequence[Point]) -> str:
    def panel(title: str, unit: str, name: str, raw: str = "") -> Panel:
        return Panel(title, unit, _curves(points, "watchers", name, raw))

    return svg(
        "What one change costs those who watch a fleet",
        "Solid: resolvers of the mesh. Dashed: bare stubs of etcd's Watch that keep nothing.",
        [
            panel("Noticed after, the median watcher", "ms", "p50_ms", "raw_p50_ms"),
            panel("CPU of each watcher", "ms", "cpu_ms", "raw_cpu_ms"),
            panel("Bytes from etcd to each watcher", "bytes", "bytes", "raw_bytes"),
            panel("Memory of each watcher", "MB", "memory_mb"),
            *_of_etcd(points, "watchers"),
        ],
    )


def _of_plane(points: Sequence[Point]) -> str:
    def panel(title: str, unit: str, name: str, most: str = "") -> Panel:
        return Panel(title, unit, _curves(points, "clients", name, most))

    return svg(
        "What one change costs the control plane",
        "Clients are xDS streams that ask for the service's endpoints, and are sent all of them at each change.",
        [
            panel("The last client has it after", "ms", "last_ms")
            if "last_ms" in points[0]
            else panel("The median client has it after", "ms", "p50_ms"),
            panel("CPU of the control plane", "ms", "cpu_ms"),
            panel("Bytes to each client", "bytes", "bytes"),
            panel("Memory of the control plane", "MB", "memory_mb")
            if "peak_mb" not in points[0]
            else panel("Memory of the control plane, dashed: at most", "MB", "memory_mb", "peak_mb"),
            *_of_etcd(points, "clients"),
        ],
    )


def _of_etcd(points: Sequence[Point], who: str) -> list[Panel]:
    """Return the account of etcd itself; the first runs did not take it."""
    if "etcd_cpu_ms" not in points[0]:
        return []
    names = {"CPU of etcd": ("ms", "etcd_cpu_ms"), "Memory of etcd": ("MB", "etcd_memory_mb")}
    return [Panel(title, unit, _curves(points, who, name)) for title, (unit, name) in names.items()]


def _curves(points: Sequence[Point], who: str, name: str, raw: str = "") -> list[Curve]:
    curves = []
    for colour, count in enumerate(sorted({point[who] for point in points})):
        own = [point for point in points if point[who] == count]
        if raw:
            curves.append(Curve("", [(p["instances"], p[raw]) for p in own], colour, faint=True))
        label = f"{count:g} {who if count != 1 else who.removesuffix('s')}"
        curves.append(Curve(label, [(p["instances"], p[name]) for p in own], colour))
    return curves


def svg(title: str, about: str, panels: Sequence[Panel]) -> str:
    """Return the picture: panels side by side, each to its own scale."""
    width = _WIDTH * _COLUMNS + _MARGIN
    height = _HEAD + _HEIGHT * -(-len(panels) // _COLUMNS)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">',
        f"<style>{_STYLE}{_COLOURS}\n</style>",
        f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
        f'<text class="title" x="{_MARGIN + 6}" y="30">{escape(title)}</text>',
        f'<text class="soft" x="{_MARGIN + 6}" y="52">{escape(about)}</text>',
    ]
    for number, panel in enumerate(panels):
        if any(value > 0 for curve in panel.curves for _, value in curve.points):
            lines += _panel(panel, _WIDTH * (number % _COLUMNS), _HEAD + _HEIGHT * (number // _COLUMNS))
    return "\n".join([*lines, "</svg>", ""])


def _panel(panel: Panel, x: int, y: int) -> Iterator[str]:
    everything = [point for curve in panel.curves for point in curve.points if point[1] > 0]
    across = _scale([instances for instances, _ in everything], x + _LEFT, x + _WIDTH - _RIGHT)
    up = _scale([value for _, value in everything], y + _HEIGHT - _FOOT, y + _TOP)
    yield (
        f'<text x="{x + _MARGIN + 6}" y="{y + 26}"><tspan class="name">{escape(panel.title)}</tspan>'
        f'<tspan class="soft" dx="6">{escape(panel.unit)}</tspan></text>'
    )
    for value in up.ticks:
        level = up(value)
        yield f'<line class="grid" x1="{x + _LEFT}" x2="{x + _WIDTH - _RIGHT}" y1="{level}" y2="{level}"/>'
        yield f'<text class="soft" x="{x + _LEFT - 8}" y="{level + 4}" text-anchor="end">{_short(value)}</text>'
    for value in across.ticks:
        at, foot = across(value), y + _HEIGHT - _FOOT
        yield f'<text class="soft" x="{at}" y="{foot + 18}" text-anchor="middle">{_short(value)}</text>'
    middle = x + (_LEFT + _WIDTH - _RIGHT) // 2
    yield f'<text class="soft" x="{middle}" y="{y + _HEIGHT - 12}" text-anchor="middle">instances</text>'
    labels: list[tuple[float, Curve]] = []
    for curve in panel.curves:
        points = [(across(a), up(b)) for a, b in curve.points if b > 0]
        if not points:  # less than nothing, once that of an idle process is taken off: too little to be seen
            continue
        kind = f"curve s{curve.colour % _TURNS}" + (" faint" if curve.faint else "")
        yield f'<path class="{kind}" d="M{"L".join(f"{a},{b}" for a, b in points)}"/>'
        if not curve.faint:
            yield from (f'<circle class="f{curve.colour % _TURNS}" cx="{a}" cy="{b}" r="3"/>' for a, b in points)
            labels.append((points[-1][1], curve))
    for level, curve in _apart(labels):
        at = x + _WIDTH - _RIGHT + 10
        yield f'<text class="f{curve.colour % _TURNS}" x="{at}" y="{level + 4}">{escape(curve.label)}</text>'


class _Scale:
    """From values to places, by their logarithm."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self._low, self._span = math.log10(low), math.log10(high) - math.log10(low)
        self._begin, self._end = begin, end
        self.ticks = _round_between(low, high)

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._low) / self._span
        return round(self._begin + (self._end - self._begin) * share, 1)


def _scale(values: Sequence[float], begin: float, end: float) -> _Scale:
    """Return a scale that ends at powers of ten, or within a decade at 1, 2 or 5 of them."""
    low, high = min(values), max(values)
    steps = (1.0, 2.0, 5.0)
    around = [10.0**size * step for size in _SIZES for step in steps]
    bottom = max(v for v in around if v <= low * 1.000001)
    top = min(v for v in around if v >= high * 0.999999)
    if top <= bottom * 2.5:
        bottom, top = max(v for v in around if v < bottom), min(v for v in around if v > top)
    return _Scale(bottom, top, begin, end)


def _round_between(low: float, high: float) -> list[float]:
    decades = [10.0**size for size in _SIZES]
    steps = (1.0,) if high / low > 200 else (1.0, 2.0, 5.0) if high / low <= 20 else (1.0, 3.0)
    return [d * s for d in decades for s in steps if low * 0.999 <= d * s <= high * 1.001]


def _apart(labels: Sequence[tuple[float, Curve]]) -> list[tuple[float, Curve]]:
    """Move labels so that none lies over another."""
    placed: list[tuple[float, Curve]] = []
    for level, curve in sorted(labels, key=lambda label: label[0]):
        placed.append((max(level, placed[-1][0] + 15) if placed else level, curve))
    return placed


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
