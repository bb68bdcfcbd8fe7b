"""The regression guard of `--quick`: a ratio may be worse than the committed one by the noise that its row states, and
a goal that was met is not missed by all of the interval.

Ratios, not times: another machine has other microseconds, and nearly the same ratios. A row that seems to have lost is
measured a second time before it is said to. One that is void, which `measure` has tried twice, is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench import paper
from bench.page import is_near
from bench.row import Measurement, Spec
from bench.site import Site

Measure = Callable[[Site, Measurement, paper.Session, str], None]
LOST, NOT_JUDGED = 1, 3


def check(site: Site, chosen: Sequence[Measurement], session: paper.Session, measure: Measure) -> int:
    """Compare what was measured with docs/benchmarks.json; LOST if something was lost, NOT_JUDGED if a row was void
    each time or skipped, or has no valid figure there, else 0.
    """
    committed = {row["row"]: row for row in paper.read() if not row.get("void") and row["ratio"] is not None}
    specs = [spec for measurement in chosen for spec in measurement.specs]
    for measurement in chosen:
        if any(loss(spec, _best(session, spec), committed) for spec in measurement.specs):
            measure(site, measurement, session, "again:")
    lost = [told for spec in specs if (told := loss(spec, _best(session, spec), committed))]
    measured = {row["row"] for row in session.rows if row["ratio"] is not None}
    void = [s.name for s in specs if s.name in measured and s.name in committed and not _best(session, s)]
    unknown = [s.name for s in specs if s.name in measured and s.name not in committed]
    skipped = [s.name for s in specs if s.name in {row["row"] for row in session.rows if row.get("skipped")} - measured]
    unjudged = {
        "the same against itself was out of bounds twice": void,
        "docs/benchmarks.json has no valid figure of it": unknown,
        "it was not measured": skipped,
    }
    for spec in specs:
        row = _best(session, spec)
        if row and spec.name in committed and not loss(spec, row, committed):
            print(f"  {spec.name}: {row['ratio']:.3f}, committed {committed[spec.name]['ratio']:.3f}: kept")
    for told in lost:
        print(f"  LOST {told}")
    some = any(unjudged.values())
    print(f"{len(lost)} lost." if lost else "Nothing that was judged is lost." if some else "Nothing was lost.")
    for why, names in unjudged.items():
        if names:
            print(f"Not judged, because {why}: {', '.join(names)}.")
    return LOST if lost or session.broken else NOT_JUDGED if some else 0


def loss(spec: Spec, row: paper.Row | None, committed: dict[str, paper.Row]) -> str:
    """Return what was lost, in words; empty if nothing was, or nothing is known."""
    known = committed.get(spec.name)
    if row is None or known is None or row.get("void") or row["ratio"] is None:
        return ""
    allowed = known["ratio"] * (1 + spec.noise if spec.lower else 1 - spec.noise)
    told = f"{spec.name}: {row['ratio']:.3f}, committed {known['ratio']:.3f}"
    if row["ratio"] > allowed if spec.lower else row["ratio"] < allowed:
        return f"{told}, with its noise {allowed:.3f}"
    if known.get("met") and row.get("met") is False and not is_near(row):
        return f"{told}, {row['low']:.3f} to {row['high']:.3f}: its goal of {spec.goal:g} was met"
    return ""


def _best(session: paper.Session, spec: Spec) -> paper.Row | None:
    """Return the better of a row's measurements that are not void: what was reached once is not lost."""
    found = [r for r in session.rows if r["row"] == spec.name and r["ratio"] is not None and not r.get("void")]
    return (min if spec.lower else max)(found, key=lambda row: row["ratio"]) if found else None
