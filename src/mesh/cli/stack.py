"""The processes of one local stack: what is started when, when it serves, what is told about it, how it leaves.

etcd first; then the control plane and the instances side by side; Envoy when the control plane answers. Leaving goes
the other way: the edge stops accepting and finishes, instances leave the registry and drain, then the rest may go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from mesh.cli import health, programs
from mesh.cli.failure import Failure
from mesh.cli.layout import Layout
from mesh.cli.leash import Guard
from mesh.cli.probes import Probes
from mesh.cli.process import Event, Phase, Process, Spec, tail
from mesh.cli.report import Report
from mesh.cli.samples import samples
from mesh.clock import Clock
from mesh.settings import TLSFiles

# Calls that the edge still answers when it is told to leave.
_EDGE_DRAIN = 5.0
_QUIET = 0.05
# An etcd that somebody else runs answers in milliseconds or not at all.
_ETCD_PATIENCE = 5.0


class Stack:
    """The processes of one local stack and what is told about them."""

    def __init__(self, layout: Layout, report: Report, clock: Clock) -> None:
        self._layout = layout
        self._report = report
        self._clock = clock
        self._guard = Guard()
        self._probes = Probes(layout, clock)
        self._serving = self._silent = False
        self._tasks: list[asyncio.Task[None]] = []
        settings = layout.settings()
        grace = settings.drain + 4.0  # `mesh run` says goodbye before and after its program drains
        self.etcd = (
            None if layout.options.etcd else self._process("etcd", layout.etcd_command(), "etcd", self._probes.etcd)
        )
        self.control_plane = self._process(
            "control-plane", layout.control_plane_command(), "control-plane", self._probes.control_plane
        )
        self.instances = [
            self._process(
                name, layout.command, "instance", self._probes.instance, layout.instance_environment(name), grace
            )
            for name in layout.instance_names
        ]
        self.envoy = self._process("envoy", layout.envoy_command(), "edge", self._probes.envoy)

    @property
    def processes(self) -> list[Process]:
        """All of them, in the order they are shown."""
        return [*([self.etcd] if self.etcd else []), *self.instances, self.control_plane, self.envoy]

    async def start(self) -> None:
        """Start everything and return once all of it serves. Raises Failure."""
        seconds = self._layout.options.timeout
        self._report.begin(self.processes)
        await self._start_etcd(seconds)
        self._probes.follow()
        self._render_front()
        self._begin(self.control_plane, *self.instances)
        await self._until_ready(seconds, self.control_plane)
        self._begin(self.envoy)
        await self._until_ready(seconds, *self.instances)
        await self._until_ready(seconds, self.envoy)
        self._serving = True
        await self._show()
        self._tell_others()

    async def _start_etcd(self, seconds: float) -> None:
        if self.etcd is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._probes.etcd(), _ETCD_PATIENCE)
                return
            raise Failure(f"etcd at {self._layout.etcd} does not answer: check --etcd, or leave it out to start one")
        data = self._layout.folder.etcd
        had_data = data.exists()
        self._begin(self.etcd)
        try:
            await self._until_ready(seconds, self.etcd)
        except Failure as e:
            if not had_data:
                raise
            raise Failure(
                f"etcd cannot use the data in {data}, broken or of another version: delete that folder and start again "
                f"(registrations come back by themselves); see {self.etcd.spec.log}"
            ) from e

    async def watch(self) -> None:
        """Return never; raise Failure if a process cannot be kept running."""
        await asyncio.gather(*self._tasks)

    async def leave(self) -> None:
        """Leave in order. Bounded by the graces of the processes."""
        self._serving = False
        if self.envoy.phase is Phase.READY:
            await self._quiet_edge()
        await self.envoy.leave()
        await asyncio.gather(*(instance.leave() for instance in self.instances))
        await self.control_plane.leave()
        await self._probes.close()
        if self.etcd is not None:
            await self.etcd.leave()
        await self._gather()

    async def kill(self) -> None:
        """End everything at once, without a word for each."""
        self._serving, self._silent = False, True
        await asyncio.gather(*(process.kill() for process in self.processes))
        await self._probes.close()
        await self._gather()

    def close(self) -> None:
        """Let go of the guard, by which whatever still runs is killed, and of the ports."""
        self._guard.close()
        self._layout.release()

    def _process(
        self,
        name: str,
        argv: tuple[str, ...],
        role: str,
        probe: Callable[[Process], Awaitable[str]],
        env: Mapping[str, str] | None = None,
        grace: float = 5.0,
    ) -> Process:
        folder = self._layout.folder
        spec = Spec(
            name=name,
            argv=argv,
            env=env or self._layout.environment(role),
            log=folder.log(name),
            hold=folder.hold / name,
            probe=probe,
            grace=grace,
        )
        with folder.errors():
            spec.log.write_bytes(b"")
        return Process(spec, guard=self._guard, clock=self._clock, tell=self._hear)

    async def _until_ready(self, seconds: float, *processes: Process) -> None:
        """Wait until these are ready. Raises Failure if a process ended before it ever was, or if it takes too long."""

        async def all_ready() -> None:
            for process in processes:
                await process.was_ready.wait()

        ready = asyncio.create_task(all_ready())
        try:
            done, _ = await asyncio.wait({ready, *self._tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if not done:
                raise self._late(seconds, next(p for p in processes if not p.was_ready.is_set()))
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)

    def _begin(self, *processes: Process) -> None:
        self._tasks += [process.start() for process in processes]

    def _late(self, seconds: float, process: Process) -> Failure:
        what = self._probes.diagnose(process) if process in self.instances else "it does not answer"
        return Failure(
            f"{process.name} was not ready within {seconds:g} s: {what}; see {process.spec.log}",
            hint=tail(process.spec.log),
        )

    def _render_front(self) -> None:
        from mesh.controlplane import front

        layout, folder = self._layout, self._layout.folder
        files, secrets = layout.files.get("edge"), folder.path.resolve() / "secrets"
        if files is not None:
            with folder.errors():
                front.write_secrets(secrets, _absolute(files))
        text = front.render(
            programs.front_file().read_text(),
            edge=layout.edge,
            control_plane=layout.control_plane,
            admin=layout.admin,
            tls=files,
            secrets=secrets,
        )
        folder.write(folder.path / "envoy.yaml", text)

    async def _quiet_edge(self) -> None:
        """Stop accepting at the edge and wait, bounded, until the requests in flight are answered."""
        admin = self._layout.admin
        if await health.fetch(admin, "/drain_listeners?graceful", verb="POST") is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_EDGE_DRAIN):
                while True:
                    page = await health.fetch(admin, "/stats?filter=downstream_rq_active&usedonly")
                    if not page or not any(_active(line) for line in page.splitlines()):
                        return
                    await self._clock.sleep(_QUIET)

    def _hear(self, event: Event) -> None:
        if not self._silent:
            self._report.tell(event)
        if self._serving:
            self._tell_others()

    def _tell_others(self) -> None:
        with suppress(Failure):  # a full disk must not stop the supervisor; the next change tries again
            self._layout.folder.tell(self.described(), self._layout.variables())

    def described(self) -> dict[str, Any]:
        """Return what stack.json says."""
        layout = self._layout
        files = _absolute(layout.files["client"]) if layout.files else None
        return {
            "edge": str(layout.edge),
            "etcd": str(layout.etcd),
            "control_plane": str(layout.control_plane),
            "envoy_admin": str(layout.admin),
            "tls": {"ca": str(files.ca), "cert": str(files.cert), "key": str(files.key)} if files else None,
            "variables": layout.variables(),
            "services": self._probes.services,
            "processes": [
                {
                    "name": process.name,
                    "state": str(process.phase),
                    "pid": process.pid,
                    "address": process.address,
                    "metrics": str(layout.metrics_of(process.name) or ""),
                    "log": str(process.spec.log),
                }
                for process in self.processes
            ],
        }

    async def _show(self) -> None:
        layout, service = self._layout, next(iter(self._probes.services), "")
        folder = layout.folder
        tried = samples(
            service, await self._probes.contract(service), str(layout.edge), layout.files.get("client"), str(folder.env)
        )
        self._report.ready(self.processes, tried, [f"Logs are in {folder.logs}. Ctrl-C stops everything in order."])

    async def _gather(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _absolute(files: TLSFiles) -> TLSFiles:
    assert files.cert is not None
    assert files.key is not None
    return TLSFiles(files.ca.resolve(), files.cert.resolve(), files.key.resolve())


def _active(line: str) -> bool:
    """Whether a line of Envoy's statistics counts requests in flight at the edge (the admin page itself is one)."""
    name, _, value = line.rpartition(": ")
    return ".admin." not in name and value.strip() not in ("", "0")
