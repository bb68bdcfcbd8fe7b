"""The page made from the rows: docs/benchmarks.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.curves import pictures

Row = Mapping[str, Any]

_PARTS = {
    "client": (
        "The client's stack",
        "With round robin, retry, breaker, deadline and metrics on, as always.",
    ),
    "pick": ("Picks and news", "What many instances cost."),
    "server": ("The server's stack", ""),
    "sidecar": (
        "Against a sidecar",
        "The sidecar is an Envoy with one worker, a static list of the same three instances and no filter but the "
        "router: the least that one can cost. CPU is that of all processes, the servers included.",
    ),
    "rivals": (
        "Against Go",
        "grpc-go with the resolver of etcd's own client (round robin, retries on), go-zero's zrpc client as it comes, "
        "and ours follow the same events, in turns: each has registrations of its own form in one etcd, and an event "
        "is one write. go-zero calls the less loaded of two, so ours does the same beside it, and calls in turns "
        "beside grpc-go. Instances are mesh servers that take 5 ms for a call. Calls are made at fixed times, a "
        "thousand a second over two instances, so an instance is called every 2 ms, and times shorter than that count "
        "as equal. A process that is killed takes some milliseconds until its connections end.",
    ),
    "edge": (
        "The edge",
        "Envoy with one worker and all of `envoy/front.yaml`, its access log included, fed by the control plane. The "
        "gateway is one process without an access log (`bench/gateway.py`). Both stand before a service that answers "
        "with a constant, and are called over 32 connections with one call at a time on each: a closed loop, for it is "
        "CPU per request that is asked for.",
    ),
    "users": ("UserService", ""),
    "discovery": (
        "Discovery at scale",
        "A simulated fleet in a real etcd: real records under real leases, nobody behind them. One more instance "
        "comes, says goodbye and goes, at fixed times that wait for no answer. Watchers have an etcd session each and "
        "share six processes on this one machine: with 200 of them most of the time to notice is waiting for a turn.",
    ),
    "startup": ("Start-up and size", ""),
}
_HEAD = """\
# Beside the others

What the mesh costs, measured beside what one would use instead, on one machine and in one session. {summary}

```console
$ make bench                    # every row, some 20 minutes; writes this page
$ make bench ROW=client         # the rows of one part, or one: ROW=client.three
$ make bench-quick              # under two minutes: fails where a ratio got worse than its noise
$ python -m bench --list        # the rows and their goals
```

This page is made from [benchmarks.json](benchmarks.json) by those commands; do not edit it. Figures are of the machine
they were made on, ratios less so: compare ratios.

**How it is measured.** CPU time per call, by the kernel's account of the process that is meant, in short blocks that
alternate: baseline, ours, baseline again, at least 20 rounds and mostly in three fresh processes. Each round gives a
ratio; the median of them is the figure, and in brackets stands its 95 % bootstrap interval. `A/A` is the second block
of the baseline over the first: the same thing against itself. Outside of 0.97 to 1.03 a row counts for nothing, and a
session whose own control is outside counts for nothing at all. Latencies come from an open loop with a fixed schedule
(`bench/openloop.py`): they count from when a call was due, so waiting for a turn is part of them. The values of every
round are kept under `bench/results/`.
"""


def page(rows: Sequence[Row], sessions: Sequence[Mapping[str, Any]]) -> str:
    """Return the page."""
    goals = [row for row in rows if row["goal"] is not None]
    met = sum(bool(row["met"]) for row in goals)
    summary = f"{len(rows)} rows; {len(goals)} have a goal, {met} of these are met."
    parts = [_HEAD.format(summary=summary)]
    for name in dict.fromkeys(row["row"].partition(".")[0] for row in rows):
        parts.append(_part(name, [row for row in rows if row["row"].partition(".")[0] == name]))
    missed = [row for row in goals if row["met"] is False]
    if missed:
        parts.append("## Not met\n\n" + "\n".join(map(_missed, missed)) + "\n")
    parts.append("## Sessions\n\n" + "\n".join(map(_session, sessions)) + "\n")
    return "\n".join(parts)


def _part(name: str, rows: Sequence[Row]) -> str:
    title, about = _PARTS.get(name, (name, ""))
    head = [f"## {title}", ""] + ([about, ""] if about else [])
    head += [
        "| row | ours | against | ratio | goal | met | A/A |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = [f"- `{row['row']}`: {row['notes']}." for row in rows if row.get("notes")]
    notes += [f"![{title}: cost against fleet size]({picture})" for picture in pictures(rows)]
    return "\n".join([*head, *map(_line, rows), "", *notes, *([""] if notes else [])])


def _line(row: Row) -> str:
    what = f"`{row['command']}`<br>{row['about']}"
    against = row["against"] or "–"
    if row.get("skipped"):
        return f"| {what} | skipped: {row['skipped']} | {against} | – | {_goal(row)} | – | – |"
    unit = row["unit"]
    ours = f"{amount(row['ours'])} {unit}" + "".join(f"<br>{fact}" for fact in _facts(row))
    if row["baseline"] is not None:
        against += f": {amount(row['baseline'])} {unit}"
    ratio = "–"
    if row["ratio"] is not None:
        ratio = f"**{row['ratio']:.2f}** ({row['low']:.2f} to {row['high']:.2f})"
    control = f"{row['control']:.2f}" if row.get("control") else "–"
    return f"| {what} | {ours} | {against} | {ratio} | {_goal(row)} | {verdict(row)} | {control} |"


_SHOWN = {"p50_ms": "p50 {} ms", "p99_ms": "p99 {} ms", "calls_per_s": "{} calls/s", "memory_mb": "{} MB"}


def _facts(row: Row) -> list[str]:
    return [form.format(amount(row[name])) for name, form in _SHOWN.items() if row.get(name) is not None]


def _goal(row: Row) -> str:
    if row["goal"] is None:
        return "–"
    sign = "≤" if row["better"] == "lower" else "≥"
    unit = f" {row['unit'].split()[0]}" if row["ratio"] is None and row["unit"] else ""
    return f"{sign} {row['goal']:g}{unit}" + (f" [{row['moonshot']:g}]" if row["moonshot"] is not None else "")


def _missed(row: Row) -> str:
    value = row["ratio"] if row["ratio"] is not None else row["ours"]
    told = f"- `{row['row']}`: {amount(value)}, asked for was {_goal(row)}."
    return f"{told} {row['limit']}" if row.get("limit") else told


def _session(session: Mapping[str, Any]) -> str:
    machine, versions = session["machine"], session["versions"]
    controls = ", ".join(f"{control:.3f}" for control in session["controls"])
    return (
        f"- **{session['session']}**: {machine.get('processor', 'a processor')}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GiB, {machine['system']}; {session['busy_before_percent']} % busy before; A/A control "
        f"{controls}; {', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


def verdict(row: Row) -> str:
    """Return whether a row's goal is met, in a word or two."""
    if row.get("skipped"):
        return "skipped"
    if row.get("void"):
        return "void"
    if row["met"] is None:
        return "–"
    value = row["ratio"] if row["ratio"] is not None else row["ours"]
    bound = row["moonshot"]
    if row["met"] and bound is not None and (value <= bound if row["better"] == "lower" else value >= bound):
        return "yes, moonshot"
    return "yes" if row["met"] else "**no**"


def amount(value: float | None) -> str:
    """Return a figure with three digits that count."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"
