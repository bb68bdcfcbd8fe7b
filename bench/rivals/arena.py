"""Where callers of several kinds meet the same events: instances that come, leave and are killed.

Each kind of caller has a part of etcd of its own, with registrations in the form that it reads, so that an event is
one write and only the caller under load hears of it. `T0` of an event is the moment before that write (or the kill).
"""

from __future__ import annotations

import functools
import json
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc

from bench.measure import Finding, iqr
from bench.rivals import SERVICE
from bench.site import Process, Site
from mesh.etcd import wire
from mesh.instance import Endpoint, Instance, State
from mesh.registry import record
from support.etcd import Etcd

OURS = ("mesh", "least")
"""Ours as it comes, in turns; and the less loaded of two."""
PYTHON = (*OURS, "hand")
"""And bare grpc.aio, which reads the same registrations."""
KINDS = (*PYTHON, "etcd", "zero")
"""And grpc-go with etcd's own resolver; go-zero's zrpc."""


class Registry:
    """Registrations as one kind of caller reads them."""

    def __init__(self, etcd: str, kind: str, name: str = "") -> None:
        self._channel = grpc.insecure_channel(etcd)
        self._kind = kind
        self.prefix = f"bench/{name or kind}"

    @property
    def where(self) -> str:
        """What the caller is told to read."""
        return self.prefix if self._kind in PYTHON else record.service_prefix(self.prefix, SERVICE).rstrip("/")

    def add(self, address: str) -> None:
        """Register an instance."""
        if self._kind == "zero":
            self._put(self._key(address), address.encode())
        else:
            self._put(self._key(address), record.encode(self._instance(address)))

    def leave(self, address: str) -> None:
        """Say that an instance is leaving: a mesh says so and keeps the key, the others delete it."""
        if self._kind in PYTHON:
            draining = self._instance(address).with_state(State.DRAINING)
            self._put(self._key(address), record.encode(draining))
        else:
            self.remove(address)

    def remove(self, address: str) -> None:
        """Delete the key, if it is there."""
        self._call(wire.DELETE, wire.delete_request(self._key(address)))

    def change_elsewhere(self) -> int:
        """Write what no client reads, so that whatever they know becomes history; return its revision."""
        return int(self._call(wire.PUT, wire.put_request("elsewhere", b"", 0)).header.revision)

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def _key(self, address: str) -> str:
        # go-zero puts a lease's number there.
        number = address.rpartition(":")[2]
        if self._kind == "zero":
            return f"{self.where}/{number}"
        return record.instance_key(self.prefix, self._instance(address))

    def _instance(self, address: str) -> Instance:
        return Instance(SERVICE, f"i-{address.rpartition(':')[2]}", Endpoint.parse(address), started=1.0)

    def _put(self, key: str, value: bytes) -> None:
        self._call(wire.PUT, wire.put_request(key, value, 0))

    def _call(self, method: wire.Method[Any, Any], request: Any) -> Any:
        call = self._channel.unary_unary(
            method.path, request_serializer=method.encode, response_deserializer=method.decode
        )
        return call(request, timeout=5)


@dataclass(frozen=True)
class Story:
    """What a caller's calls came to. Times are seconds of the wall clock."""

    calls: Sequence[tuple[float, float, str, str]]
    """Begun, ended, code, instance, in the order they began."""
    attempts: Sequence[tuple[float, str]]

    @classmethod
    def read(cls, told: dict[str, Any]) -> Story:
        """Read what a caller tells after "stop"."""
        calls = sorted((begun / 1e9, ended / 1e9, code, name) for _, begun, ended, code, name in told["calls"] or ())
        return cls(calls, sorted((at / 1e9, name) for at, name in told["attempts"] or ()))

    def first_on(self, instance: str, since: float) -> float | None:
        """Return how long after `since` the first call began that this instance answered."""
        return next((b - since for b, _, code, name in self.calls if name == instance and b > since), None)

    def last_on(self, instance: str, since: float) -> float:
        """Return how long after `since` the last attempt went to it; 0 if none did."""
        return max((at - since for at, name in self.attempts if name == instance and at > since), default=0.0)

    def failed(self, since: float = 0.0, until: float = float("inf")) -> int:
        """Count the calls that failed."""
        return sum(code != "OK" for begun, _, code, _ in self.calls if since <= begun < until)


class Rival:
    """A caller of one kind under orders, and its registrations."""

    def __init__(
        self,
        site: Site,
        kind: str,
        etcd: str,
        *,
        program: str,
        bases: Sequence[str],
        via: str = "",
        name: str = "",
        noted: bool = True,
    ) -> None:
        self.kind = kind
        self._tell = site.tell
        self.registry = Registry(etcd, kind, name)
        for address in bases:
            self.registry.add(address)
        words = [kind, via or etcd, self.registry.where]
        environment = {"RIVALS_NOTE": "1" if noted else ""}
        label = f"rival-{name or kind}"
        self.process: Process = (
            site.python("-m", "bench.rivals.caller", *words, name=label, env=environment)
            if kind in PYTHON
            else site.start([program, *words], name=label, env=environment)
        )
        self.process.line()

    def under_load(self, rate: float, events: Callable[[], None]) -> Story:
        """Call at a steady rate while the events take place."""
        self._order(f"start {rate}", "started")
        try:
            events()
        finally:
            told = self._order("stop", "calls")
        return Story.read(told)

    def _order(self, order: str, answer: str) -> dict[str, Any]:
        """Give an order and return its answer. Lines in between are news of some library's: they are shown."""
        line = self.process.ask(order)
        while answer not in (told := json.loads(line)):
            self._tell(f"{self.kind} says by itself: {line[:300]}")
            line = self.process.line()
        return cast(dict[str, Any], told)

    def stop(self, site: Site) -> None:
        """End it."""
        self.registry.close()
        site.stop(self.process)


class Spare:
    """An instance that comes, and goes as an event asks."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._process = site.python("-m", "bench.rivals.instance", name="instance")

    @functools.cached_property
    def address(self) -> str:
        """Where it is; waits until it serves."""
        return self._process.line()

    def terminate(self) -> None:
        """Have it leave in order."""
        self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a word."""
        self._process.signal(signal.SIGKILL)

    def stop(self) -> None:
        """Have it ended and forgotten."""
        self._site.stop(self._process)


def wait(seconds: float) -> None:
    """Let the load go on."""
    time.sleep(seconds)


@contextmanager
def etcd_of(site: Site) -> Iterator[Etcd]:
    """Run an etcd that does not wait for the disk: a slow one would be the same delay for all."""
    with Etcd(site.folder / f"etcd-{time.monotonic_ns()}", arguments=["--unsafe-no-fsync"]) as etcd:
        yield etcd


_TICK = 0.001
"""Milliseconds: what stands for nothing at all where it is divided by, or divides."""


def beside(
    ours: Sequence[float], theirs: Sequence[float], *, middle: Callable[..., float] = statistics.median
) -> Finding:
    """Compare the medians, or means, of milliseconds that are no pairs."""
    draw = random.Random(len(ours))

    def again(values: Sequence[float]) -> float:
        return middle(draw.choices(values, k=len(values)))

    ratios = sorted(_ratio(again(ours), again(theirs)) for _ in range(2000))
    a, b = middle(ours), middle(theirs)
    found = Finding(a, b, _ratio(a, b), ratios[50], ratios[-51], unit="ms", spread=(iqr(ours), iqr(theirs)))
    found.samples = {"ours": [round(v, 3) for v in ours], "baseline": [round(v, 3) for v in theirs]}
    found.facts = {"worst": max(ours), "baseline_worst": max(theirs)}
    return found


def _ratio(ours: float, theirs: float) -> float:
    return (ours or _TICK) / (theirs or _TICK)
