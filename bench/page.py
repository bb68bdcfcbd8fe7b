"""The page made from the rows: docs/benchmarks.md."""

from __future__ import annotations

import json
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
        "thousand a second over two instances, so an instance is called every 2 ms: one that leaves may have had its "
        "last call before it said so, which counts as 0. A process that is killed takes some milliseconds until its "
        "connections end. An attempt is noted when it is handed to gRPC, and taken back where that says that it was "
        "never sent; in Go the connection tells of those that it takes. Ours has the contract's policies, hedging "
        "among them. The plain client by hand is `bench/rivals/by_hand.py`, bare grpc.aio without retries or "
        "breakers, in turns: what it takes longer than Go is grpc.aio's and Python's, what ours takes longer than it "
        "is ours.",
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
        "share six processes on this one machine: with 200 of them most of the time to notice is waiting for a turn. "
        "The control plane is looked at with 1, 10, 50 and 200 clients, bare xDS streams that accept the endpoints "
        "unread: its rows are of 10. What etcd itself takes for a change stands in the plots and notes.",
    ),
    "startup": ("Start-up and size", ""),
}
_HEAD = """\
# Beside the others

What the mesh costs, measured beside what one would use instead, {where}. {summary}

```console
$ make bench                    # every row, half an hour; writes this page
$ make bench ROW=client         # the rows of one part, or one: ROW=client.three
$ make bench-quick              # under two minutes: fails where a ratio got worse than its noise
$ python -m bench --list        # the rows and their goals
$ python -m bench --compare A B  # two runs kept under bench/results/, row by row
```

This page is made from [benchmarks.json](benchmarks.json) by those commands; do not edit it. Figures are of the machine
they were made on, ratios less so: compare ratios. There every row has the same keys, and under `detail` what is its
own: what it is about, unit, session, rounds, `A/A`, `spread` (interquartile ranges of ours and of the baseline), notes,
and facts that were measured on the way, such as tails, memory or the shares of a cost.

**How it is measured.** CPU time per call, by the kernel's account of the process that is meant, in short blocks that
alternate, mostly in six fresh processes. Each arm has three blocks on end, and then it is another's turn: the first
only warms up, two count, one right behind it and one more. So all arms have the same neighbours. What is measured has a
core to itself, apart from who calls it and whom it calls; where all of these are measured, the caller has one; blocking
calls have one together with their server, since one waits for the other. `n` says how many rounds there were, or how
often the same thing was looked at, and in how many processes; `IQR` is how far the middle half of them lie apart. Each
round gives a ratio; the median of them is the figure, and in brackets stands its 95 % bootstrap interval, of processes
that are drawn and of rounds drawn from each: two processes of one program differ by some per cent for all of their
life. A goal that lies within the interval is met, or not, within the noise. `A/A` is the same thing against itself: the
baseline's block after the others' turns over the one before them. It shows what others leave behind, and a machine that
is busy. Outside of 0.97 to 1.03 a row is void: it counts for nothing, and its goal not as met. A session whose own
control is outside counts for nothing at all. Latencies come from an open loop with a fixed schedule
(`bench/openloop.py`): they count from when a call was due, so waiting for a turn is part of them. The values of every
round are kept under `bench/results/`.
"""


def page(rows: Sequence[Row], sessions: Sequence[Mapping[str, Any]]) -> str:
    """Return the page."""
    parts = [_HEAD.format(where=_where(rows, sessions), summary=_summary(rows))]
    for name in dict.fromkeys(row["row"].partition(".")[0] for row in rows):
        parts.append(_part(name, [row for row in rows if row["row"].partition(".")[0] == name]))
    missed = [row for row in rows if row["goal"] is not None and not row["met"]]
    if missed:
        parts.append("## Not met\n\n" + "\n".join(map(_missed, missed)) + "\n")
    parts.append("## Sessions\n\n" + "\n".join(map(_session, sessions)) + "\n")
    return "\n".join(parts)


def _where(rows: Sequence[Row], sessions: Sequence[Mapping[str, Any]]) -> str:
    machines = len({json.dumps(session["machine"], sort_keys=True) for session in sessions})
    runs = len({row["session"] for row in rows})
    return f"on {_many(max(1, machines), 'machine')} and in {_many(runs, 'session')}"


def _many(number: int, what: str) -> str:
    return f"one {what}" if number == 1 else f"{number} {what}s"


def _summary(rows: Sequence[Row]) -> str:
    """Return how many goals were met; whatever has a goal is counted once."""
    goals = [row for row in rows if row["goal"] is not None]
    counted = []
    for text, those in (
        ("met", [row for row in goals if row["met"]]),
        ("not", [row for row in goals if row["met"] is False]),
        ("void", [row for row in goals if row.get("void")]),
        ("skipped", [row for row in goals if row.get("skipped")]),
    ):
        near = sum(map(is_near, those))
        if those:
            counted.append(f"{len(those)} {text}" + (f" ({near} of them within the noise)" if near else ""))
    return f"{len(rows)} rows, {len(goals)} of them with a goal: {', '.join(counted) or 'none measured'}."


def is_near(row: Row) -> bool:
    """Tell whether the interval goes over the goal: another run may say the opposite of what `met` says."""
    if row["met"] is None or row["low"] is None:
        return False
    best, worst = (row["low"], row["high"]) if row["better"] == "lower" else (row["high"], row["low"])
    doubtful = worst if row["met"] else best
    return (doubtful <= row["goal"] if row["better"] == "lower" else doubtful >= row["goal"]) is not row["met"]


def _part(name: str, rows: Sequence[Row]) -> str:
    title, about = _PARTS.get(name, (name, ""))
    head = [f"## {title}", ""] + ([about, ""] if about else [])
    head += [
        "| row | ours | against | ratio | goal | met | A/A | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for row in rows:
        # What a void row would tell of its parts is as void as the whole.
        told = [] if row.get("void") else [*filter(None, [row.get("notes"), not_taken(row)]), *_third(row)]
        notes += [f"- `{row['row']}`: {'; '.join(told)}."] if told else []
    notes += [""] if notes and pictures(rows) else []
    notes += [f"![{title}: cost against fleet size]({picture})" for picture in pictures(rows)]
    return "\n".join([*head, *map(_line, rows), "", *notes, *([""] if notes else [])])


def _line(row: Row) -> str:
    what = f"`{row['command']}`<br>{row['about']}"
    against = row["against"] or "–"
    if row.get("skipped"):
        return f"| {what} | skipped: {row['skipped']} | {against} | – | {_goal(row)} | – | – | – |"
    ranges = row.get("spread") or (None, None)
    ours = "<br>".join([_measured(row["ours"], row["unit"], ranges[0]), *_facts(row)])
    if row["baseline"] is not None:
        baseline = _measured(row["baseline"], row["unit"], ranges[1])
        against = "<br>".join([f"{against}: {baseline}", *_facts(row, "baseline_")])
    ratio = "–"
    if row["ratio"] is not None:
        ratio = f"**{row['ratio']:.2f}**{interval(row, 2)}"
    control = f"{row['control']:.2f}" if row.get("control") else "–"
    n = f"{row.get('rounds') or '–'}" + (f" in {row['processes']}" if row.get("processes") else "")
    cells = (what, ours, against, ratio, _goal(row), verdict(row), control, n)
    return f"| {' | '.join(cells)} |"


def interval(row: Row, digits: int) -> str:
    """Return a ratio's interval in brackets, behind a space; nothing where it was looked at once."""
    return f" ({row['low']:.{digits}f} to {row['high']:.{digits}f})" if row["low"] < row["high"] else ""


def _measured(value: float, unit: str, spread: float | None) -> str:
    return f"{amount(value)} {unit}" + (f" (IQR {amount(spread)})" if spread is not None else "")


_SHOWN = {"p50_ms": "p50 {} ms", "p99_ms": "p99 {} ms", "calls_per_s": "{} calls/s", "memory_mb": "{} MB"}


def _facts(row: Row, whose: str = "") -> list[str]:
    found = {name: row.get(whose + name) for name in _SHOWN}
    return [_SHOWN[name].format(amount(value)) for name, value in found.items() if value is not None]


def _third(row: Row) -> list[str]:
    """Return the figures of what else ran in turns with both."""
    facts = _facts(row, "proxyless_")
    return [f"`xds:///` fed by our control plane: {', '.join(facts)}"] if facts else []


def not_taken(row: Row) -> str:
    """Return in words what a later session found that does not count, and does not replace this; empty if none did."""
    if not (later := row.get("not_taken")):
        return ""
    return f"as session {row['session']} found it; that of {later['session']} is not taken ({later['why']})"


def _goal(row: Row) -> str:
    if row["goal"] is None:
        return "–"
    sign = "≤" if row["better"] == "lower" else "≥"
    unit = f" {row['unit'].split()[0]}" if row["ratio"] is None and row["unit"] else ""
    return f"{sign} {row['goal']:g}{unit}" + (f" [{row['moonshot']:g}]" if row["moonshot"] is not None else "")


def _missed(row: Row) -> str:
    value = row["ratio"] if row["ratio"] is not None else row["ours"]
    told = f"- `{row['row']}`: {value:.3f}, asked for was {_goal(row)}." if value is not None else ""
    if row.get("skipped"):
        return f"- `{row['row']}`: not measured, {row['skipped']}; asked for was {_goal(row)}."
    if row.get("void"):
        return f"{told} Void: the same against itself came to {row['control']:.2f}, so neither is known."
    return f"{told} {row['limit']}" if row.get("limit") else told


def _session(session: Mapping[str, Any]) -> str:
    machine, versions = session["machine"], session["versions"]
    controls = ", ".join(f"{control:.3f}" for control in session["controls"])
    took = f"took {session['took_s'] / 60:.0f} min; " if "took_s" in session else ""
    return (
        f"- **{session['session']}**: {machine.get('processor', 'a processor')}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GiB, {machine['system']}; {took}{session['busy_before_percent']} % busy before; A/A "
        f"control {controls}; {', '.join(f'{name} {version}' for name, version in versions.items())}."
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
    return ("yes" if row["met"] else "**no**") + (", within the noise" if is_near(row) else "")


def amount(value: float | None) -> str:
    """Return a figure with three digits that count."""
    if value is None:
        return "–"
    if not value:
        return "0"
    if not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    told = f"{value:,.{min(digits, 4)}f}"
    return told if float(told.replace(",", "")) else "0"
