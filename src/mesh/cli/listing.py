"""`mesh ls`: services and their instances, once, as the store has them now."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesh.cli.failure import FAILED
from mesh.clock import Clock
from mesh.errors import RecordError
from mesh.etcd import EtcdStore
from mesh.instance import Instance, State
from mesh.registry.record import decode, service_prefix, services_prefix
from mesh.settings import Settings

COLOURS = {State.READY: "green", State.DRAINING: "yellow", State.PAUSED: "red"}


async def ls(settings: Settings, service: str | None, as_json: bool, console: Console, clock: Clock) -> int:
    """Print the instances of one service, or of all; return 1 if the one asked for has none."""
    instances, skipped = await read(settings, service)
    if as_json:
        # Not through rich: programs want no wrapping, whatever the width.
        print(json.dumps(described(instances), indent=2), file=console.file)
    elif instances:
        console.print(instance_table(instances, clock.time()))
    else:
        console.print(f"{service} has no instance." if service else "Nothing is registered.")
    if skipped and not as_json:
        console.print(Text(f"{skipped} records could not be read and were skipped.", style="yellow"))
    return FAILED if service and not instances else 0


async def read(settings: Settings, service: str | None = None) -> tuple[list[Instance], int]:
    """Return the instances, sorted, and the number of records that could not be read. Raises StoreError."""
    prefix = service_prefix(settings.prefix, service) if service else services_prefix(settings.prefix)
    instances, skipped = [], 0
    async with EtcdStore.from_settings(settings) as store:
        listing = await store.list(prefix)
    for key, entry in listing.entries.items():
        try:
            instances.append(decode(key, entry.value, settings.prefix))
        except RecordError:
            skipped += 1
    return sorted(instances, key=lambda i: (i.service, i.id)), skipped


def described(instances: Iterable[Instance]) -> list[dict[str, Any]]:
    """Return what `--json` prints: a list of services, each with its instances."""
    services: dict[str, list[dict[str, Any]]] = {}
    for i in instances:
        started = datetime.datetime.fromtimestamp(i.started, datetime.UTC).isoformat(timespec="milliseconds")
        services.setdefault(i.service, []).append(
            {
                "id": i.id,
                "state": str(i.state),
                "address": str(i.endpoint),
                "zone": i.zone,
                "version": i.version,
                "weight": i.weight,
                "started": started if i.started else None,
                "contract": i.contract,
            }
        )
    return [{"service": name, "instances": of_it} for name, of_it in services.items()]


def instance_table(instances: Sequence[Instance], now: float) -> Table:
    """Return the table; a column that would be empty is left out, a service is named in its first row."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("SERVICE", no_wrap=True, style="bold")
    for name in ("INSTANCE", "STATE", "ADDRESS"):
        table.add_column(name, no_wrap=True)
    extras = [name for name in ("zone", "version") if any(getattr(i, name) for i in instances)]
    for name in extras:
        table.add_column(name.upper())
    table.add_column("AGE", justify="right", no_wrap=True)
    before = ""
    for i in instances:
        told = [getattr(i, name) for name in extras]
        state = Text(str(i.state), style=COLOURS[i.state])
        table.add_row(
            i.service if i.service != before else "", i.id, state, str(i.endpoint), *told, age(i.started, now)
        )
        before = i.service
    return table


def age(started: float, now: float) -> str:
    """Say how long ago something started, in its largest unit: "12s", "5m", "3h", "8d"; "" if it is not known."""
    if not started:
        return ""
    seconds = max(0, int(now - started))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
