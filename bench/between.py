"""What changed between two recorded runs: row by row both ratios, with their intervals, and whether these overlap.

Where they do, nothing is known to have changed. Ratios, not times: the two may be of two machines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.page import amount
from bench.paper import RESULTS
from bench.row import flat

Row = Mapping[str, Any]


def table(before: str, after: str) -> str:
    """Return the lines for two runs, each named as under bench/results/ or by its path. Raises OSError for neither."""
    old, new = _read(before), _read(after)
    lines = [_line(name, old[name], new[name]) for name in old if name in new]
    for which, only in ((before, old.keys() - new.keys()), (after, new.keys() - old.keys())):
        lines += [f"Only in {which}: {', '.join(sorted(only))}."] if only else []
    return "\n".join(lines)


def _read(run: str) -> dict[str, Row]:
    path = Path(run) if run.endswith(".json") else RESULTS / f"{run}.json"
    told = json.loads(path.read_text())
    return {row["row"]: flat(row) | ({"void": True} if told["void"] else {}) for row in told["rows"]}


def _line(name: str, old: Row, new: Row) -> str:
    return f"{name:26} {_told(old):>28}  {_told(new):>28}  {verdict(old, new)}"


def verdict(old: Row, new: Row) -> str:
    """Return what may be said of a row that was measured twice."""
    if any(row.get("void") or row.get("skipped") for row in (old, new)):
        return "not comparable"
    if (old["ratio"] is None) is not (new["ratio"] is None) or None in (old["low"], new["low"]):
        return "no interval"
    if old["low"] <= new["high"] and new["low"] <= old["high"]:
        return "overlap"
    return "APART, better" if (new["low"] < old["low"]) is (new["better"] == "lower") else "APART, worse"


def _told(row: Row) -> str:
    if row.get("skipped"):
        return "skipped"
    told = amount(row["ratio"]) if row["ratio"] is not None else f"{amount(row['ours'])} {row['unit']}"
    told += f" ({amount(row['low'])} to {amount(row['high'])})" if row["low"] is not None else ""
    return told + (" void" if row.get("void") else "")
