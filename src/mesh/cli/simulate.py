"""`mesh simulate`: a scenario's file in; a table, a plot, JSON or SVG out. What happens is `mesh.simulation`."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from mesh.cli.failure import MISUSED, Failure
from mesh.cli.plot import plot
from mesh.simulation import Report, Scenario, ScenarioError, read_scenarios, report_of, simulate
from mesh.simulation.scale import counted, seconds
from mesh.simulation.svg import svg_of
from mesh.simulation.verdict import verdict
from mesh.simulation.world import MakeDice


def run(
    path: Path,
    settings: Sequence[str],
    *,
    svg: Path | None,
    as_json: bool,
    make_dice: MakeDice,
    console: Console,
    errors: Console,
) -> int:
    """Simulate every variant in the file and tell what became of it. Raises Failure for a mistake in what was given."""
    scenarios = read(path, settings)
    reports = [_simulated(scenario, make_dice, errors) for scenario in scenarios]
    if svg is not None:
        _write(svg, svg_of(reports, path.stem.replace("-", " ").capitalize()))
    if as_json:
        # Not through rich: programs want no wrapping, whatever the width.
        print(json.dumps([r.told() for r in reports], indent=2), file=console.file)
        return 0
    _print(reports, console)
    if svg is not None:
        console.print(Text(f"The plot is in {svg}."), soft_wrap=True)
    return 0


def read(path: Path, settings: Sequence[str]) -> list[Scenario]:
    """Read a scenario with its variants; raise Failure with one sentence if it cannot be."""
    yaml = _yaml()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = _settings(settings, yaml)
    except OSError as e:
        raise Failure(f"{path} cannot be read: {e.strerror}", code=MISUSED) from e
    except UnicodeDecodeError as e:
        raise Failure(f"{path} is no text in UTF-8", code=MISUSED) from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise Failure(f"{path}{where}, is no YAML: {getattr(e, 'problem', None) or e}", code=MISUSED) from e
    try:
        return read_scenarios(data, given)
    except ScenarioError as e:
        raise Failure(f"{path}: {e}", code=MISUSED) from e


def _yaml() -> Any:
    try:
        import yaml
    except ModuleNotFoundError as e:
        raise Failure("mesh simulate needs PyYAML: run pip install 'grpc-mesh[local]'", code=MISUSED) from e
    return yaml


def _settings(settings: Sequence[str], yaml: Any) -> Mapping[str, object]:
    given: dict[str, object] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip("."):
            raise Failure(f"{setting!r} sets nothing: write e.g. --set clients.retry.budget=off", code=MISUSED)
        given[name.strip()] = yaml.safe_load(value)
    return given


def _simulated(scenario: Scenario, make_dice: MakeDice, errors: Console) -> Report:
    end = scenario.duration + scenario.clients.deadline
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(scenario.name or "simulating", total=end)
        with _no_garbage_collection():
            tally = simulate(scenario, make_dice, lambda now: progress.update(task, completed=now))
    return report_of(scenario, tally)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Nothing that a simulation lets go of is in a cycle, and looking through a hundred thousand endpoints for one
    takes a quarter of its time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise Failure(f"{path} cannot be written: {e.strerror}", code=MISUSED) from e


def _print(reports: Sequence[Report], console: Console) -> None:
    scenario = reports[0].scenario
    if scenario.about:
        console.print(Text(scenario.about))
        console.print()
    top = max(max(r.series.sent) for r in reports)
    for report in reports:
        if report.scenario.name:
            console.print(Text(report.scenario.name, style="bold"))
        console.print(plot(report, top, console.width))
        console.print(_table(report))
        style = "red" if report.recovered is None else "green"
        console.print(Text(_capital(verdict(report)) + ".", style=style))
        console.print()


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True, min_width=6)
    for name in ("calls/s", "success", "answered/s", "attempts", "load", "peak", "p50", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in report.phases:
        table.add_row(
            phase.name,
            counted(phase.calls / (phase.end - phase.start)),
            f"{phase.success_rate:.2%}",
            counted(phase.goodput),
            f"{phase.attempts_per_call:.2f}",
            f"{phase.load:.0%}",
            f"{phase.amplification:.2f} ×",
            seconds(phase.p50),
            seconds(phase.p99),
        )
    return table


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
