"""What befalls the servers: each fault as the few things that happen at its beginning, on the way, and at its end, and
what clients get to see of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mesh.simulation.client import Client
from mesh.simulation.scenario import Fault, FaultKind
from mesh.simulation.server import ROUND_TRIP, Server
from mesh.simulation.timeline import Timeline

# A mesh client pings every second and waits a second for the answer (mesh.client.options).
_HANG_NOTICED = 2.0
# From a word in the registry to the clients that watch it.
_NEWS = 0.01


class Fate:
    """Plans faults. BURST is none of servers, see `world`."""

    def __init__(self, timeline: Timeline, servers: Sequence[Server], clients: Sequence[Client]) -> None:
        self._timeline = timeline
        self._servers = servers
        self._clients = clients

    def plan(self, faults: Iterable[Fault]) -> None:
        """Have everything happen in its time."""
        for fault in faults:
            for number, server in enumerate(self._servers[: fault.servers]):
                self._plan(fault, number, server)

    def _plan(self, fault: Fault, number: int, server: Server) -> None:
        at = self._timeline.at
        match fault.kind:
            case FaultKind.CRASH:
                at(fault.at, self._crash, server)
                at(fault.until, Server.start, server)
            case FaultKind.HANG:
                at(fault.at, _hang, server)
                if fault.length > _HANG_NOTICED:
                    at(fault.at + _HANG_NOTICED, self._cut_off, server)
                at(fault.until, Server.awake, server)
            case FaultKind.SLOW:
                at(fault.at, _set_slowness, (server, fault.factor))
                at(fault.until, _set_slowness, (server, 1.0))
            case FaultKind.ERRORS:
                at(fault.at, _set_errors, (server, fault.rate, fault.code))
                at(fault.until, _set_errors, (server, 0.0, fault.code))
            case FaultKind.ROLLING_RESTART:
                begins = fault.at + number * (fault.drain + fault.down)
                at(begins + _NEWS, self._say_leaving, server)
                at(begins + fault.drain, self._crash, server)
                at(begins + fault.drain + fault.down, self._return, server)
            case FaultKind.BURST:
                pass

    def _crash(self, server: Server) -> None:
        server.listening = False
        self._timeline.at(self._timeline.now + ROUND_TRIP / 2, self._cut_off, server)

    def _cut_off(self, server: Server) -> None:
        server.cut_off()
        for client in self._clients:
            client.connection_lost(server)

    def _say_leaving(self, server: Server) -> None:
        for client in self._clients:
            client.said(server, ready=False)

    def _return(self, server: Server) -> None:
        server.start()
        self._timeline.at(self._timeline.now + _NEWS, self._say_back, server)

    def _say_back(self, server: Server) -> None:
        for client in self._clients:
            client.said(server, ready=True)


def _hang(server: Server) -> None:
    server.hung = True


def _set_slowness(change: tuple[Server, float]) -> None:
    server, factor = change
    server.slowness = factor


def _set_errors(change: tuple[Server, float, str]) -> None:
    server, rate, code = change
    server.error_rate, server.error_code = rate, code
