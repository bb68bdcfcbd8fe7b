"""A plot for terminals: what was answered in time, solid; and above it, shaded, the attempts that brought nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from mesh.simulation.report import Report
from mesh.simulation.scale import ceiling, counted, ticks
from mesh.simulation.verdict import faults_told

_ROWS = 8
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_MARGIN = 7


def plot(report: Report, top: float, width: int) -> Text:
    """Return the plot, `width` columns wide at most, to a scale that ends at `top` or the next round number."""
    series, scenario = report.series, report.scenario
    top = ceiling(top)
    columns = _columns(len(series.sent), max(20, width - _MARGIN - 6))
    good, sent = (_stretched(values, columns) for values in (series.goodput, series.sent))
    lines = [_row(row, good, sent, top) for row in range(_ROWS - 1, -1, -1)]
    lines.append(Text(f"{'0':>{_MARGIN - 1}} └" + "─" * columns, style="dim"))
    lines.append(_times(scenario.duration, columns))
    if report.trigger is not None:
        begin, end = (round(t / scenario.duration * columns) for t in report.trigger)
        bar = "━" * max(1, end - begin)
        lines.append(
            Text(" " * (_MARGIN + 1 + begin) + f"{bar} {faults_told(scenario)}", style="red", overflow="ellipsis")
        )
    lines.append(_legend())
    return Text("\n").join(lines)


def _row(row: int, good: Sequence[float], sent: Sequence[float], top: float) -> Text:
    label = counted(top * (row + 1) / _ROWS) if row in (_ROWS - 1, _ROWS // 2 - 1) else ""
    line = Text(f"{label:>{_MARGIN - 1}} " + ("┤" if label else "│"), style="dim")
    for answered, tried in zip(good, sent, strict=True):
        eighths = round(answered / top * _ROWS * 8) - row * 8
        if eighths > 0:
            line.append(_EIGHTHS[min(eighths, 8)], style="not dim green")
        elif tried / top * _ROWS - row >= 0.5:
            line.append("░", style="not dim red")
        else:
            line.append(" ")
    return line


def _columns(steps: int, room: int) -> int:
    """Return how wide the plot is: each step the same number of columns, if there is room for all of them."""
    return steps * (room // steps) if steps <= room else room


def _stretched(values: Sequence[float], columns: int) -> list[float]:
    """Return the value of each column: the mean of the steps that it covers, or the one that covers it."""
    per_column = len(values) / columns
    stretched = []
    for column in range(columns):
        first = int(column * per_column)
        covered = values[first : max(first + 1, int((column + 1) * per_column))]
        stretched.append(sum(covered) / len(covered))
    return stretched


def _times(duration: float, columns: int) -> Text:
    line = [" "] * (columns + 8)
    for tick in ticks(duration):
        at = round(tick / duration * columns)
        label = f"{tick:g} s"
        line[at : at + len(label)] = label
    return Text(" " * (_MARGIN + 1) + "".join(line).rstrip(), style="dim")


def _legend() -> Text:
    return Text.assemble(
        " " * (_MARGIN + 1), ("█", "green"), (" answered in time   ", "dim"), ("░", "red"),
        (" attempts that brought nothing, per second", "dim"),
    )  # fmt: skip
