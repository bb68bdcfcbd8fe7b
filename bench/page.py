"""The page made from the rows: docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def page(rows: Sequence[Row], sessions: Sequence[Mapping[str, Any]]) -> str:
    """Return the page."""
    return "\n".join(f"| {row['row']} |" for row in rows) + "\n"
