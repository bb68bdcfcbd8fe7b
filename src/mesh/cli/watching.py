"""`mesh watch`: services and instances as they come, change and go."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from mesh.cli.listing import instance_table, read
from mesh.clock import Clock
from mesh.etcd import EtcdStore
from mesh.instance import Instance, View
from mesh.registry.resolver import Resolver
from mesh.settings import Settings

# Ages grow by seconds.
_REFRESH = 1.0

Views = Mapping[str, View]


async def watch(settings: Settings, service: str | None, console: Console, clock: Clock) -> int:
    """Show what is registered until cancelled. Raises StoreError if the store cannot be read at the beginning."""
    await read(settings, service)
    told: asyncio.Queue[Views] = asyncio.Queue()

    def listen(views: Views) -> None:
        told.put_nowait({name: view for name, view in views.items() if service in (None, name)})

    async with EtcdStore.from_settings(settings) as store:
        resolver = Resolver(store, settings.prefix, clock=clock, networks=settings.networks)
        resolver.subscribe_all(listen)
        try:
            if console.is_terminal and not console.is_dumb_terminal:
                await _live(told, console, clock)
            else:
                await _lines(told, console, clock)
        finally:
            await resolver.aclose()
    return 0


async def _live(told: asyncio.Queue[Views], console: Console, clock: Clock) -> None:
    views: Views = {}
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                async with asyncio.timeout(_REFRESH):
                    views = await told.get()
            except TimeoutError:
                pass  # nothing new but the time
            live.update(_picture(views, clock.time()), refresh=True)


def _picture(views: Views, now: float) -> RenderableType:
    instances = [i for name in sorted(views) for i in views[name].instances]
    parts: list[RenderableType] = [instance_table(instances, now) if instances else Text("Nothing is registered.")]
    if any(view.stale for view in views.values()):
        parts.append(Text("\netcd cannot be reached: this is what was known last.", style="yellow"))
    return Group(*parts)


async def _lines(told: asyncio.Queue[Views], console: Console, clock: Clock) -> None:
    before: Views = {}
    while True:
        views = await told.get()
        moment = datetime.datetime.fromtimestamp(clock.time()).strftime("%H:%M:%S")
        for line in changes(before, views):
            console.print(f"{moment}  {line}", soft_wrap=True)
        console.file.flush()
        before = views


def changes(before: Views, now: Views) -> Iterator[str]:
    """Say what is different, one line each, sorted."""
    old, new = _instances(before), _instances(now)
    for key in sorted(old.keys() | new.keys()):
        name = " ".join(key)
        was, is_ = old.get(key), new.get(key)
        if is_ is None:
            yield f"- {name}"
        elif was is None:
            yield f"+ {name} {is_.endpoint} {is_.state}"
        elif was != is_:
            yield f"~ {name} {is_.endpoint} {is_.state}"
    was_stale, is_stale = _stale(before), _stale(now)
    if is_stale and not was_stale:
        yield "! etcd cannot be reached: this is what was known last"
    elif was_stale and not is_stale:
        yield "! etcd is back"


def _instances(views: Views) -> dict[tuple[str, str], Instance]:
    return {(i.service, i.id): i for view in views.values() for i in view.instances}


def _stale(views: Views) -> bool:
    return any(view.stale for view in views.values())
