"""`python -m bench.limits [NAME …]`: measures limits and prints them. Nothing is written. Leave the machine alone
meanwhile; each takes between ten seconds and a minute.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.limits import LIMITS, Figures
from bench.measure import Finding
from bench.row import Skipped
from bench.site import Site

for _module in ("stubs", "spans", "account", "connection", "event", "modules", "dying"):
    importlib.import_module(f"bench.limits.{_module}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for. 0: measured, or skipped with a reason; 1: one broke, or its control is out; 2: no such."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; default: all")
    parser.add_argument("--list", action="store_true", help="list them, and measure nothing")
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)  # for the test
    given = parser.parse_args(argv)
    if given.list:
        print("\n".join(f"{limit.name:12} {limit.about}" for limit in LIMITS.values()))
        return 0
    if unknown := [name for name in given.names if name not in LIMITS]:
        print(f"no such limit: {', '.join(unknown)}. `python -m bench.limits --list` has them.", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # etcd comes with the packages, beside the Python that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    is_void = False
    try:
        for name in given.names or LIMITS:
            with Site(scale=given.scale, tell=lambda text: print(text, file=sys.stderr, flush=True)) as site:
                site.label = name
                try:
                    figures = LIMITS[name].measure(site)
                except Skipped as e:
                    print(f"{name}: skipped: {e}", flush=True)
                    is_void |= e.is_fault
                    continue
            print(f"{name}: {LIMITS[name].about}\n{table(figures)}", flush=True)
            is_void |= given.scale == 1.0 and any(finding.is_void for finding in figures.values())
    except KeyboardInterrupt:
        print("\nStopped. Every process that was started has ended.", file=sys.stderr)
        return 130
    return int(is_void)


def table(figures: Figures) -> str:
    """Return the figures, a line each."""
    return "\n".join(f"  {what:<62} {_figure(finding)}" for what, finding in figures.items())


def _figure(found: Finding) -> str:
    n = min(map(len, found.samples.values()), default=0)
    amount = f"{found.ours:.4g} {found.unit}"
    if found.ratio is None:
        return f"{amount} ({found.low:.4g} to {found.high:.4g}), n {n}"
    control = "" if found.control is None else f", A/A {found.control:.2f}{', VOID' if found.is_void else ''}"
    beside = f"{amount} beside {found.baseline:.4g}"
    return f"{found.ratio:.3f} ({found.low:.3f} to {found.high:.3f}), {beside}, n {n}{control}"


if __name__ == "__main__":
    sys.exit(main())
