"""A plot as SVG: for each variant, what was sent and what was answered in time, over time. Written by hand: no library,
no script, light and dark by the reader's choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from mesh.simulation.report import Report
from mesh.simulation.scale import ceiling, counted, ticks
from mesh.simulation.verdict import faults_told, verdict

_WIDTH, _LEFT, _RIGHT = 860, 64, 24
_PLOT = _WIDTH - _LEFT - _RIGHT
_HEAD, _PANEL, _HEIGHT, _FOOT = 60, 250, 150, 6

_STYLE = """
  svg { --paper: #ffffff; --ink: #1f2430; --soft: #6b7280; --line: #e4e7ec; --good: #0f9d8a; --lost: #f2a65a;
        --fault: #d64550; font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #11151c; --ink: #e6e9ef; --soft: #9aa4b2; --line: #272e3a; --good: #2bb5a0; --lost: #b8702c;
          --fault: #f0727c; }
  }
  text { fill: var(--ink); } .soft { fill: var(--soft); } .title { font-size: 15px; font-weight: 600; }
  .name { font-weight: 600; } .paper { fill: var(--paper); } .grid { stroke: var(--line); stroke-width: 1; }
  .good { fill: var(--good); } .lost { fill: var(--lost); } .fault { fill: var(--fault); }
  .shade { fill: var(--fault); opacity: .10; }
  .calls { fill: none; stroke: var(--ink); stroke-width: 1.5; }
  .capacity { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; }
"""


def svg_of(reports: Sequence[Report], title: str) -> str:
    """Return the plot of a scenario's variants, all to one scale."""
    top = ceiling(max(max(r.series.sent) for r in reports))
    height = _HEAD + _PANEL * len(reports) + _FOOT
    told = f"{title}: attempts sent and calls answered in time"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(told, quote=True)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{height}" rx="8"/>',
        f'<text class="title" x="{_LEFT}" y="28">{escape(title)}</text>',
        *_legend(),
    ]
    for number, report in enumerate(reports):
        lines += _panel(report, _HEAD + _PANEL * number, top)
    return "\n".join([*lines, "</svg>", ""])


def _legend() -> Iterator[str]:
    x = _LEFT
    for kind, words in (("good", "answered in time"), ("lost", "attempts that brought nothing")):
        yield f'<rect class="{kind}" x="{x}" y="40" width="12" height="12" rx="2"/>'
        yield f'<text class="soft" x="{x + 18}" y="51">{words}</text>'
        x += 36 + 7 * len(words)
    yield f'<line class="calls" x1="{x}" x2="{x + 16}" y1="46" y2="46"/>'
    yield f'<text class="soft" x="{x + 22}" y="51">calls</text>'
    x += 74
    yield f'<line class="capacity" x1="{x}" x2="{x + 16}" y1="46" y2="46"/>'
    yield f'<text class="soft" x="{x + 22}" y="51">what the servers can bear</text>'


def _panel(report: Report, y: int, top: float) -> Iterator[str]:
    scenario, series = report.scenario, report.series
    head, foot = y + 40, y + 40 + _HEIGHT

    def across(seconds: float) -> float:
        return round(_LEFT + _PLOT * seconds / scenario.duration, 1)

    def up(value: float) -> float:
        return round(foot - _HEIGHT * value / top, 1)

    yield (
        f'<text x="{_LEFT}" y="{y + 24}"><tspan class="name">{escape(scenario.name or "result")}</tspan>'
        f'<tspan class="soft" dx="10">{escape(verdict(report))}</tspan></text>'
    )
    for share in (0.0, 0.5, 1.0):
        level = up(top * share)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _PLOT}" y1="{level}" y2="{level}"/>'
        yield f'<text class="soft" x="{_LEFT - 8}" y="{level + 4}" text-anchor="end">{counted(top * share)}</text>'
    if report.trigger is not None:
        begin, end = (across(t) for t in report.trigger)
        yield f'<rect class="shade" x="{begin}" y="{head}" width="{round(end - begin, 1)}" height="{_HEIGHT}"/>'
        yield f'<rect class="fault" x="{begin}" y="{foot}" width="{round(end - begin, 1)}" height="3"/>'
        anchor = "end" if end > _LEFT + _PLOT * 0.7 else "start"
        at = end if anchor == "end" else begin
        told = escape(faults_told(scenario))
        yield f'<text class="fault" x="{at}" y="{foot + 38}" text-anchor="{anchor}">{told}</text>'
    yield f'<path class="lost" d="{_area(_stairs(series.sent, series.step, scenario.duration, across, up), foot)}"/>'
    yield f'<path class="good" d="{_area(_stairs(series.goodput, series.step, scenario.duration, across, up), foot)}"/>'
    if scenario.servers.capacity <= top:
        level = up(scenario.servers.capacity)
        yield f'<line class="capacity" x1="{_LEFT}" x2="{_LEFT + _PLOT}" y1="{level}" y2="{level}"/>'
    yield f'<path class="calls" d="M{_stairs(series.calls, series.step, scenario.duration, across, up)}"/>'
    for tick in ticks(scenario.duration):
        yield f'<text class="soft" x="{across(tick)}" y="{foot + 20}" text-anchor="middle">{tick:g} s</text>'


def _stairs(
    values: Sequence[float],
    step: float,
    duration: float,
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> str:
    points = []
    for number, value in enumerate(values):
        level = up(value)
        points += [f"{across(number * step)},{level}", f"{across(min((number + 1) * step, duration))},{level}"]
    return "L".join(points)


def _area(stairs: str, foot: int) -> str:
    return f"M{_LEFT},{foot}L{stairs}L{_LEFT + _PLOT},{foot}Z"
