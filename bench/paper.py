"""What a session has found, and how it is written: docs/benchmarks.json, the page made from it, the raw samples."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.curves import pictures
from bench.measure import CONTROL, Finding
from bench.page import amount, interval, not_taken, page, verdict
from bench.row import ORDER, Spec, flat, nested, record

DOCS, RESULTS = ROOT / "docs", ROOT / "bench" / "results"
Row = dict[str, Any]


@dataclass
class Session:
    """One run of the bench."""

    name: str
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    busy: int = 0
    controls: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    samples: dict[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    broken: bool = False
    judged: bool = True
    """Whether the controls mean anything: not in the tiny runs of the harness's own test."""
    begun: float = field(default_factory=time.monotonic)

    @property
    def is_void(self) -> bool:
        """Whether the controls say that no figure is to be believed."""
        return self.judged and any(not CONTROL[0] <= control <= CONTROL[1] for control in self.controls)

    def add(self, spec: Spec, found: Finding) -> None:
        """Take over a finding."""
        self.rows.append(record(spec, found, session=self.name))
        self.samples[spec.name] = found.samples | ({"parts": list(found.parts)} if found.parts else {})

    def skip(self, specs: Sequence[Spec], why: str, *, broken: bool = False) -> None:
        """Say why rows have no figures."""
        self.broken = self.broken or broken
        self.rows += [record(spec, None, session=self.name, skipped=why) for spec in specs]

    def to_json(self) -> dict[str, Any]:
        """Return what is kept under bench/results/."""
        return {
            "session": self.name,
            "machine": self.machine,
            "versions": self.versions,
            "busy_before_percent": self.busy,
            "took_s": round(time.monotonic() - self.begun),
            "controls": [round(control, 4) for control in self.controls],
            "void": self.is_void,
            "rows": [nested(row) for row in self.rows],
            "samples": self.samples,
        }


def read(folder: Path | None = None) -> list[Row]:
    """Return the rows of the last runs."""
    path = (folder or DOCS) / "benchmarks.json"
    return list(map(flat, json.loads(path.read_text()))) if path.exists() else []


def write(session: Session, out: Path | None = None) -> list[str]:
    """Write the samples; and, unless the run is void, replace the rows it measured and make the page again.

    Return in words which of its rows were not taken.
    """
    results = out or RESULTS
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{session.name}.json").write_text(_compact(session.to_json()))
    if session.is_void:
        return []
    rows = merged(read(out), session.rows)
    text = "[\n" + ",\n".join(f"  {json.dumps(nested(row), ensure_ascii=False)}" for row in rows) + "\n]\n"
    ((out or DOCS) / "benchmarks.json").write_text(text)
    write_page(out)
    new = {row["row"] for row in session.rows}
    return [f"{row['row']}: {not_taken(row)}" for row in rows if row["row"] in new and row.get("not_taken")]


def merged(before: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """Return the rows of the last run, and of those before it what it did not measure, or not in a way that counts."""
    rows = {row["row"]: row for row in before}
    for row in measured:
        known = rows.get(row["row"])
        if known is not None and _counts(known) and not _counts(row):
            rows[row["row"]] = known | {"not_taken": {"session": row["session"], "why": row.get("skipped", "void")}}
        else:
            rows[row["row"]] = row
    return sorted(rows.values(), key=_place)


def _counts(row: Row) -> bool:
    return row["ours"] is not None and not row.get("void")


def write_page(out: Path | None = None) -> None:
    """Make the page and its plots from the JSON."""
    ((out or DOCS) / "benchmarks.md").write_text(made(out))
    for name, picture in pictures(read(out)).items():
        ((out or DOCS) / name).write_text(picture)


def made(out: Path | None = None) -> str:
    """Return the page."""
    rows = read(out)
    sessions = {row["session"]: _session(row["session"], out) for row in rows}
    return page(rows, [s for s in sessions.values() if s])


def _session(name: str, out: Path | None) -> dict[str, Any] | None:
    path = (out or RESULTS) / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def _place(row: Row) -> int:
    module = row["row"].partition(".")[0]
    return ORDER.index(module) if module in ORDER else len(ORDER)


def _compact(told: Mapping[str, Any]) -> str:
    parts = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in told.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def listing(specs: Iterable[Spec]) -> str:
    """Return the list that --list prints."""
    lines = []
    for spec in specs:
        goal = f"{'≤' if spec.lower else '≥'} {spec.goal:g}" if spec.goal is not None else ""
        moonshot = f" [{spec.moonshot:g}]" if spec.moonshot is not None else ""
        against = f" / {spec.baseline}" if spec.baseline else ""
        lines.append(f"{spec.name:26} {goal + moonshot:14} {spec.ours}{against}{'  (quick)' if spec.quick else ''}")
    return "\n".join(lines)


def line(row: Row) -> str:
    """Return a row as one line for people."""
    if row.get("skipped"):
        return f"skipped: {row['skipped']}"
    told = f"{amount(row['ours'])} {row['unit']}"
    if row["baseline"] is not None:
        told += f" against {amount(row['baseline'])}: {row['ratio']:.3f}{interval(row, 3)}"
    if row["goal"] is not None:
        told += f", goal {'≤' if row['better'] == 'lower' else '≥'} {row['goal']:g}: {verdict(row)}"
    return told + (f", A/A {row['control']:.3f}" if row.get("control") else "")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as lines, for the terminal."""
    return "\n".join(f"{row['row']:26} {line(row)}" for row in rows)
