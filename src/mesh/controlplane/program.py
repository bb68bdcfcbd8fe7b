"""The control plane as a process: logs, metrics, signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

from mesh.controlplane.server import ControlPlane
from mesh.credentials import server_credentials
from mesh.etcd import EtcdStore
from mesh.registry.resolver import Resolver
from mesh.settings import Settings
from mesh.store import Store
from mesh.telemetry import logs, pages

_log = logging.getLogger("mesh.controlplane")

LISTEN = "127.0.0.1:18000"


async def run(settings: Settings, listen: str = LISTEN, *, store: Store | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError, in one sentence, if it cannot start.

    settings: `tls` is for callers of the control plane, who must show a certificate of the same authority. Instances of
    the mesh are then reached with TLS too.
    listen: host:port.
    store: by default the etcd that the settings name.
    """
    logs.configure(settings.log_level, "mesh.control-plane", settings.instance_id, service_version=settings.version)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    page = pages.serve_metrics(settings.metrics) if settings.metrics else None
    async with contextlib.AsyncExitStack() as stack:
        if page is not None:
            stack.callback(page.close)
        opened = await stack.enter_async_context(store or EtcdStore.from_settings(settings))
        resolver = Resolver(opened, settings.prefix, networks=settings.networks)
        stack.push_async_callback(resolver.aclose)
        credentials = server_credentials(settings.tls) if settings.tls else None
        plane = ControlPlane(resolver, listen, credentials=credentials, reflection=settings.reflection)
        await stack.enter_async_context(plane)
        await stopped.wait()
        _log.info("stopping", extra={"event.action": "stopping"})
