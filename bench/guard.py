"""The regression guard of `--quick`: a ratio may be worse than the committed one by the noise that its row states.

Ratios, not times: another machine has other microseconds, and nearly the same ratios. A row that seems to have lost is
measured a second time before it is said to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench import paper
from bench.row import Measurement, Spec
from bench.site import Site

Measure = Callable[[Site, Measurement, paper.Session, str], None]


def check(site: Site, chosen: Sequence[Measurement], session: paper.Session, measure: Measure) -> int:
    """Compare what was measured with docs/benchmarks.json; 1 if something was lost, else 0."""
    committed = {row["row"]: row for row in paper.read()}
    for measurement in chosen:
        suspects = [spec.name for spec in measurement.specs if loss(spec, _last(session, spec), committed)]
        if suspects:
            measure(site, measurement, session, "again:")
    lost = []
    for spec in (spec for m in chosen for spec in m.specs):
        row = _last(session, spec)
        told = loss(spec, row, committed)
        lost += [told] if told else []
        if not told and row and row["ratio"] is not None and spec.name in committed:
            print(f"  {spec.name}: {row['ratio']:.3f}, committed {_ratio(committed[spec.name])}: kept")
    for told in lost:
        print(f"  LOST {told}")
    print(f"{len(lost)} lost." if lost else "Nothing was lost.")
    return 1 if lost or session.broken else 0


def loss(spec: Spec, row: paper.Row | None, committed: dict[str, paper.Row]) -> str:
    """Return what was lost, in words; empty if nothing was, or nothing is known."""
    known = committed.get(spec.name)
    if row is None or known is None or row.get("void") or row["ratio"] is None or known["ratio"] is None:
        return ""
    allowed = known["ratio"] * (1 + spec.noise if spec.lower else 1 - spec.noise)
    if row["ratio"] <= allowed if spec.lower else row["ratio"] >= allowed:
        return ""
    return f"{spec.name}: {row['ratio']:.3f}, committed {known['ratio']:.3f}, with its noise {allowed:.3f}"


def _last(session: paper.Session, spec: Spec) -> paper.Row | None:
    """Return the better of a row's measurements: what was reached once is not lost."""
    found = [row for row in session.rows if row["row"] == spec.name and row["ratio"] is not None]
    return (min if spec.lower else max)(found, key=lambda row: row["ratio"]) if found else None


def _ratio(row: paper.Row) -> str:
    return "–" if row["ratio"] is None else f"{row['ratio']:.3f}"
