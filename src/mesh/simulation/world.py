"""A scenario come true: servers, clients, calls at random times, and faults, until the last call has ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from mesh.balancing.subset import subset
from mesh.clock import Dice
from mesh.instance import Endpoint, Instance
from mesh.simulation.client import Client
from mesh.simulation.faults import Fate
from mesh.simulation.scenario import Clients, FaultKind, Scenario, ServiceTime, Spread
from mesh.simulation.server import Server
from mesh.simulation.tally import Tally
from mesh.simulation.timeline import Timeline

MakeDice = Callable[[int], Dice]
Progress = Callable[[float], None]
"""Hears the virtual time, a second at a time."""


def simulate(scenario: Scenario, make_dice: MakeDice, progress: Progress = lambda _: None) -> Tally:
    """Let a scenario happen and return what happened: the same for the same scenario, to the last call.

    make_dice: makes dice from a seed. Calls, service times and clients have dice of their own, so that two variants of
    a scenario see the same calls come at the same times.
    """
    timeline, tally = Timeline(), Tally()
    of_calls, of_servers, of_clients = (make_dice(3 * scenario.seed + n) for n in range(3))
    draw = _draw_of(scenario.servers.service_time, of_servers)
    servers = [Server(str(n), scenario.servers, timeline, of_servers, draw) for n in range(scenario.servers.count)]
    clients = [
        Client(scenario.clients, known, timeline, of_clients, tally) for known in _known(scenario.clients, servers)
    ]
    Fate(timeline, servers, clients).plan(scenario.faults)
    _Callers(scenario, clients, timeline, of_calls)
    end = scenario.duration + scenario.clients.deadline
    for second in range(1, math.ceil(end)):
        timeline.run(second)
        progress(second)
    timeline.run(end)
    return tally


class _Callers:
    """Whoever makes the calls: all clients together are one Poisson process, and each call is anybody's."""

    def __init__(self, scenario: Scenario, clients: list[Client], timeline: Timeline, dice: Dice) -> None:
        self._rate = scenario.offered
        self._until = scenario.duration
        self._clients = clients
        self._timeline = timeline
        self._dice = dice
        self._generation = 0
        for fault in scenario.faults:
            if fault.kind is FaultKind.BURST:
                timeline.at(fault.at, self._change, fault.factor)
                timeline.at(fault.until, self._change, 1 / fault.factor)
        self._plan()

    def _change(self, factor: float) -> None:
        # The process has no memory: the next call may be drawn anew.
        self._rate *= factor
        self._generation += 1
        self._plan()

    def _plan(self) -> None:
        at = self._timeline.now - math.log(1.0 - self._dice.random()) / self._rate
        if at < self._until:
            self._timeline.at(at, self._call, self._generation)

    def _call(self, generation: int) -> None:
        if generation == self._generation:
            self._clients[self._dice.randrange(len(self._clients))].call()
            self._plan()


def _known(clients: Clients, servers: list[Server]) -> Iterator[list[Server]]:
    """Yield the servers that each client connects to."""
    size = clients.balancer.subset_size
    of = {Endpoint(f"server-{server.id}", 1): server for server in servers}
    instances = [Instance("simulated", server.id, place) for place, server in of.items()]
    for number in range(clients.count):
        yield [of[i.endpoint] for i in subset(f"client-{number}", instances, size)] if size else servers


def _draw_of(time: ServiceTime, dice: Dice) -> Callable[[], float]:
    middle, sigma, random = time.middle, time.sigma, dice.random
    if time.spread is Spread.ALWAYS:
        return lambda: middle
    if time.spread is Spread.EXPONENTIAL:
        return lambda: -middle * math.log(1.0 - random())
    # Box and Muller's way to the normal distribution.
    return lambda: middle * math.exp(sigma * math.sqrt(-2.0 * math.log(1.0 - random())) * math.cos(math.tau * random()))
