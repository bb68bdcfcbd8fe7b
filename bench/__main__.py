"""`python -m bench [ROW …]`: measures rows beside their rivals; writes docs/benchmarks.json, its page and the samples.

A ROW is a name of --list or the first part of one ("client"). Leave the machine alone meanwhile: figures are of it and
of whatever else it does.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import ROOT, between, guard, machine, paper, row
from bench.measure import CONTROL, Finding, Samples
from bench.row import Measurement, Skipped
from bench.site import Site

_CALM = 25.0  # percent; more than that is somebody else at work
_VOID = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for. 0: measured; 1: --quick found a loss, or a row broke; 2: no such row or run; 3: void, or
    --quick could not judge a row.
    """
    given = _parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # etcd, Envoy and others come with the packages, beside the Python that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    measurements = row.load(given.rows)
    if given.list:
        print(paper.listing([spec for m in measurements for spec in m.specs]))
        return 0
    if given.compare:
        try:
            print(between.table(*given.compare))
        except OSError as e:
            print(f"no such run: {e.filename}", file=sys.stderr)
            return 2
        return 0
    if given.page:
        paper.write_page(given.out)
        return 0
    unknown = [name for name in given.rows if not any(_is_asked(m, [name]) for m in measurements)]
    if unknown:
        print(f"no such row: {', '.join(unknown)}. `python -m bench --list` has them.", file=sys.stderr)
        return 2
    chosen = [m for m in measurements if _is_asked(m, given.rows)]
    if given.quick and not given.rows:
        chosen = [m for m in chosen if any(spec.quick for spec in m.specs)]
    try:
        return _run(chosen, given)
    except KeyboardInterrupt:
        print("\nStopped. Every process that was started has ended; nothing was written.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only these; default: all")
    parser.add_argument("--list", action="store_true", help="list the rows with their goals, and measure nothing")
    parser.add_argument(
        "--quick", action="store_true", help="a few ratios in less time; fail on a loss against docs/benchmarks.json"
    )
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    parser.add_argument("--page", action="store_true", help="measure nothing, make the page from the JSON")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="measure nothing, compare two runs of bench/results/"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write everything there instead of docs/ and bench/results/"
    )
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)  # for the harness's own test
    return parser


def _is_asked(measurement: Measurement, names: Sequence[str]) -> bool:
    own = [spec.name for spec in measurement.specs]
    return not names or any(o == name or o.startswith(f"{name}.") for o in own for name in names)


def _run(chosen: Sequence[Measurement], given: argparse.Namespace) -> int:
    session = paper.Session(f"{datetime.now(UTC):%Y-%m-%dT%H%MZ}", machine.facts(), machine.versions())
    session.judged = given.scale == 1.0
    with Site(quick=given.quick, scale=given.scale, tell=lambda text: print(text, flush=True)) as site:
        site.label = "machine"
        session.busy = round(machine.busy())
        site.tell(f"{session.busy} % busy before the first block{'; that is too much' if session.busy > _CALM else ''}")
        session.controls.append(_control(site))
        for number, measurement in enumerate(chosen, 1):
            _measure(site, measurement, session, f"{number}/{len(chosen)}")
        if not given.quick:
            session.controls.append(_control(site))
        if given.quick:
            return _VOID if _tell_void(session) else guard.check(site, chosen, session, _measure)
    void = _tell_void(session)
    print(paper.table(session.rows))
    for told in [] if given.dry else paper.write(session, given.out):
        print(f"NOT TAKEN {told}")
    return _VOID if void else 1 if session.broken else 0


def _control(site: Site) -> float:
    """Measure the session's control: a raw stub against itself; over twice as many rounds where it is out at first."""
    site.label = "A/A control"
    samples = Samples()
    for _ in range(2):
        _, address = site.serve("plain")
        job = {"addresses": [address]}
        samples.extend(site.compare("bench.arms.client:control", job, calls=300, rounds=90, cores="apart"))
        site.sweep()
        site.tell(f"the same thing against itself: {samples.control:.3f}")
        if CONTROL[0] <= samples.control <= CONTROL[1] or site.scale < 1.0:
            break
    return samples.control


def _tell_void(session: paper.Session) -> bool:
    if session.is_void:
        told = ", ".join(f"{control:.3f}" for control in session.controls)
        print(
            f"VOID: the A/A control came to {told}, outside of {CONTROL[0]} to {CONTROL[1]}. Something else was at "
            "work on this machine: the figures below prove nothing. Nothing of docs/ is replaced by a void run."
        )
    return session.is_void


def _measure(site: Site, measurement: Measurement, session: paper.Session, label: str = "") -> None:
    """Measure, a second time where the own control of a row is out, and add the rows to the session."""
    site.label = f"{label} {measurement.specs[0].name}".strip()
    begun = time.monotonic()
    found: dict[str, Finding] = {}
    try:
        found = measurement.findings(site)
        site.sweep()
        if any(f.is_void for f in found.values()) and site.scale == 1.0:
            site.tell("its own control is out of bounds: once more")
            found = measurement.findings(site)
    except Skipped as e:
        session.skip(measurement.specs, str(e), broken=e.is_fault)
        site.tell(f"skipped: {e}")
    except Exception as e:  # one row that cannot be measured must not cost the others
        traceback.print_exc()
        session.skip(measurement.specs, f"it broke ({type(e).__name__})", broken=True)
    finally:
        site.sweep()
    for spec in measurement.specs:
        if spec.name in found:
            site.label = f"{label} {spec.name}".strip()
            session.add(spec, found[spec.name])
            site.tell(f"{paper.line(session.rows[-1])} (took {time.monotonic() - begun:.0f} s)")


if __name__ == "__main__":
    assert Path.cwd() != ROOT / "bench", "run it as `python -m bench` from the folder above"
    sys.exit(main())
