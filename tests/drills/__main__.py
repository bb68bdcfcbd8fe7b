"""`python -m drills [FAULT …]`: runs drills and writes docs/drills.json and docs/drills.md. `--soak` runs an hour."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from drills import paper
from drills.drill import REGISTRY, run_now
from drills.site import ROADS
from drills.soak import soak

_CALM = 40.0  # percent; a drill itself takes about as much of two cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 if it ran, whatever came of it, 1 if a soak missed something, 2 for a wrong name."""
    parser = argparse.ArgumentParser(prog="drills", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"one or more of {', '.join(REGISTRY)}")
    parser.add_argument("--road", action="append", choices=ROADS, help="only on this road (may be repeated)")
    parser.add_argument("--short", action="store_true", help="shorter faults, for a look; rows say so")
    parser.add_argument("--dry", action="store_true", help="print the rows and write nothing")
    parser.add_argument("--page", action="store_true", help="run nothing, make docs/drills.md from docs/drills.json")
    parser.add_argument("--patient", type=float, default=0.0, help="seconds to wait for a calm machine before each")
    parser.add_argument(
        "--rate",
        type=float,
        help="calls a second and road, instead of the drill's own where it asks for no number, and of a soak's 50",
    )
    parser.add_argument(
        "--since",
        default="",
        metavar="'2026-11-22 12:00'",
        help="leave out faults run since then (UTC): go on with a run",
    )
    parser.add_argument("--soak", action="store_true", help="a random fault a minute instead")
    parser.add_argument("--minutes", type=float, default=60.0, help="of a soak")
    parser.add_argument("--seed", type=int, default=None, help="of a soak")
    parser.add_argument("--summary", type=Path, help="of a soak: write what came of it to this file as well")
    given = parser.parse_args(argv)
    # Told to end, even from a script's background, it ends what it has started.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if given.soak:
        seed = given.seed if given.seed is not None else int.from_bytes(os.urandom(2))
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            good = asyncio.run(soak(Path(folder), given.minutes, seed, rate=given.rate or 50.0, summary=given.summary))
            return 0 if good else 1
    unknown = [name for name in given.faults if name not in REGISTRY]
    if unknown:
        print(f"no such fault: {', '.join(unknown)}. There are: {', '.join(REGISTRY)}", file=sys.stderr)
        return 2
    if given.page:
        paper.write(paper.merge([]), REGISTRY)
        return 0
    names = given.faults or list(REGISTRY)
    if given.since:
        made = {row["fault"]: row["date"] for row in paper.merge([])}
        names = [name for name in names if made.get(name, "") < given.since]
    for number, name in enumerate(names, 1):
        _one(name, f"[{number}/{len(names)}] {name}", given)
    return 0


def _one(name: str, label: str, given: argparse.Namespace) -> None:
    begin = time.monotonic()

    def tell(what: str) -> None:
        print(f"{label}: {what} ({time.monotonic() - begin:.0f} s)", flush=True)

    busy = _wait_for_calm(given.patient)
    tell(f"starting on a machine that is {busy:.0f} % busy")
    try:
        fault = REGISTRY[name]
        if given.rate and fault.rule.calls is None and fault.rule.goodput is None:
            fault = replace(fault, setup=replace(fault.setup, rate=given.rate))
        rows = run_now(fault, roads=given.road or ROADS, short=given.short, tell=tell)
    except Exception as e:  # one drill that cannot be run must not cost the others
        tell(f"could not be run: {type(e).__name__}: {e}")
        return
    for row in rows:
        row["busy"] = round(busy)
        told = "met" if row["met"] else f"NOT met: {'; '.join(row['missed'])}"
        print(
            f"  {row['road']:8} {row['calls']} calls, {row['failed']} failed, p99 {row['p99_ms']:g} ms,"
            f" recovered {row['recover_s']:g} s, {row['attempts_per_call']:.2f} attempts: {told}",
            flush=True,
        )
    if not given.dry:
        paper.write(paper.merge(rows), REGISTRY)


def _wait_for_calm(seconds: float) -> float:
    """Return how many percent of the machine others use, once that is little or so many seconds are over."""
    end = time.monotonic() + seconds
    while (busy := psutil.cpu_percent(interval=2.0)) > _CALM and time.monotonic() < end:
        pass
    return busy


if __name__ == "__main__":
    sys.exit(main())
