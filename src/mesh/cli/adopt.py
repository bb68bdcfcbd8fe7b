"""`mesh run`: puts a program of any language on the mesh, as `mesh.serve` would if it were Python.

It is registered once its gRPC health answers SERVING, paused while it answers anything else, and taken out before it is
told to end. The program is tied to us: it dies if we are killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc.aio

from mesh.cli import FORKS, QUIET, health, ports, programs, reflection
from mesh.cli.failure import MISUSED, Failure
from mesh.cli.leash import tie
from mesh.clock import Clock, Dice
from mesh.contract.descriptors import digest
from mesh.errors import StoreError
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, Instance, State
from mesh.registry.registrar import Registrar
from mesh.server.place import instance_id
from mesh.settings import Settings

# Health is asked this often: quickly until it first serves, then once a second.
_EAGER, _CALM = 0.1, 1.0
# Answers that may fail to come in a row before a program counts as unwell; a busy one may miss one.
_MISSES = 2

Say = Callable[[str], None]


class Adopted:
    """One program and its registration."""

    def __init__(self, settings: Settings, endpoint: Endpoint, clock: Clock, say: Say) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._clock = clock
        self._say = say
        self._store = EtcdStore.from_settings(settings)
        self._registrar: Registrar | None = None
        self._state = State.READY

    async def begin(self, services: Sequence[str], seconds: float, name: str) -> None:
        """Wait until the program serves and register it. Raises Failure if it does not in time."""
        async with health.open_channel(self._endpoint, self._settings.tls) as channel:
            await self._until_serving(channel, seconds)
            offered = list(services) or await self._offered(channel)
            contract = await reflection.contract(channel, offered)
        advertised = Endpoint.parse(self._settings.advertise) if self._settings.advertise else self._endpoint
        instances = [
            Instance(
                service=service,
                id=name,
                endpoint=advertised,
                zone=self._settings.zone,
                version=self._settings.version,
                weight=self._settings.weight,
                started=self._clock.time(),
                contract=digest(contract) if contract else "",
            )
            for service in offered
        ]
        self._registrar = Registrar(
            self._store, instances, prefix=self._settings.prefix, ttl=self._settings.ttl, contract=contract
        )
        await self._registrar.start(wait=False)
        self._say(f"{', '.join(offered)} is on the mesh as {name} at {advertised}")
        if not contract:
            self._say("it has no reflection, so the edge cannot offer it as JSON")

    async def attend(self) -> None:
        """Follow the program's health for ever."""
        assert self._registrar is not None
        misses = 0
        async with health.open_channel(self._endpoint, self._settings.tls) as channel:
            while True:
                await self._clock.sleep(_CALM)
                serving = await health.is_serving(channel)
                misses = misses + 1 if serving is None else 0
                if serving is None and misses < _MISSES:
                    continue
                wanted = State.READY if serving else State.PAUSED
                if wanted is not self._state:
                    self._state = wanted
                    self._say("serves again" if serving else "its health is not SERVING: paused")
                    await self._registrar.set_state(wanted)

    async def announce_leave(self) -> None:
        """Say that no more calls should come, and give others the time to hear it."""
        if self._registrar is not None:
            await self._registrar.set_state(State.DRAINING)
            await self._clock.sleep(self._settings.settle)

    async def leave(self) -> None:
        """Delete the registration. Bounded; harmless when there is none."""
        if self._registrar is not None:
            await self._registrar.leave()
        await self._store.close()

    async def _until_serving(self, channel: grpc.aio.Channel, seconds: float) -> None:
        serving: bool | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (serving := await health.is_serving(channel)):
                    await self._clock.sleep(_EAGER)
                return
        if serving is None:
            raise Failure(
                f"nothing answers gRPC at {self._endpoint} after {seconds:g} s: let the program listen on $PORT, or "
                "name where it listens with --address"
            )
        raise Failure(
            f"{self._endpoint} answers, but its health is not SERVING after {seconds:g} s: it needs the standard "
            "grpc.health.v1.Health service"
        )

    async def _offered(self, channel: grpc.aio.Channel) -> list[str]:
        try:
            offered = await reflection.services(channel)
        except reflection.NoReflection:
            offered = []
        if not offered:
            raise Failure("the program does not tell its services by reflection: name them with --service")
        return offered


async def adopt(
    settings: Settings,
    program: Sequence[str],
    services: Sequence[str],
    address: Endpoint | None,
    seconds: float,
    say: Say,
    clock: Clock,
    dice: Dice,
) -> int:
    """Run a program on the mesh until it ends or we are told to; return its exit code. Raises Failure."""
    endpoint = address or Endpoint(settings.listen.rpartition(":")[0], ports.free(dice))
    if address is not None:
        ports.claim(address.port, "another --address", dice).close()
    child = await _start(programs.resolve(program), endpoint)
    adopted = Adopted(settings, endpoint, clock, say)

    async def attend() -> None:
        await adopted.begin(services, seconds, instance_id(settings, dice))
        await adopted.attend()

    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked.put_nowait, number)
    attending, ended = asyncio.create_task(attend()), asyncio.create_task(child.wait())
    told = asyncio.create_task(asked.get())
    try:
        await asyncio.wait({attending, ended, told}, return_when=asyncio.FIRST_COMPLETED)
        if told.done() and not ended.done():
            attending.cancel()
            await _take_out(adopted, child, asked, settings)
        elif attending.done() and not ended.done():
            attending.result()
        with suppress(StoreError):
            await adopted.leave()
        return exit_code(await ended)
    finally:
        for task in (attending, told):
            task.cancel()
        await asyncio.gather(attending, told, return_exceptions=True)
        _kill(child)
        await child.wait()


async def _start(program: Sequence[str], endpoint: Endpoint) -> asyncio.subprocess.Process:
    env = {name: value for name, value in os.environ.items() if (name, value) != (FORKS, QUIET[FORKS])}
    env |= {"PORT": str(endpoint.port), "MESH_LISTEN": str(endpoint)}
    try:
        return await asyncio.create_subprocess_exec(
            *program,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,  # Ctrl-C is for us: out of the mesh first, then the program is told
            preexec_fn=tie(),
        )
    except OSError as e:
        raise Failure(f"cannot run {program[0]}: {e.strerror}: check the program", code=MISUSED) from e


async def _take_out(
    adopted: Adopted, child: asyncio.subprocess.Process, asked: asyncio.Queue[signal.Signals], settings: Settings
) -> None:
    """Out of the mesh, then SIGTERM, then patience; a second signal ends the patience."""
    hurried = asyncio.create_task(asked.get())
    announcing = asyncio.create_task(adopted.announce_leave())
    await asyncio.wait({announcing, hurried}, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    ended = asyncio.create_task(child.wait())
    await asyncio.wait({ended, hurried}, timeout=settings.drain, return_when=asyncio.FIRST_COMPLETED)
    _kill(child)
    hurried.cancel()
    await asyncio.gather(announcing, hurried, return_exceptions=True)


def exit_code(code: int) -> int:
    """Return an exit code as shells tell it: 128 + the signal's number for who was killed."""
    return 128 - code if code < 0 else code


def _kill(child: asyncio.subprocess.Process) -> None:
    """End the program and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
