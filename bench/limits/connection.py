"""How soon a connection is there, and how soon it is known to be gone: bare grpc.aio beside grpc-go.

    python -m bench.limits.connection ADDRESS   the one in Python; the one in Go is `rivals watch ADDRESS`

Each line on stdin makes a connection; the answer tells when it was made and ready, in nanoseconds since, and when it
was seen to be gone, in nanoseconds of the wall clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import socket
import sys
import threading
import time

import grpc

from bench.limits import Figures, limit, share
from bench.measure import Finding
from bench.rivals import building
from bench.rivals.arena import beside
from bench.site import Site

_ROUNDS = 100
_REST = 0.06
"""Seconds that a connection stands: by then whoever waits for its end sleeps."""
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_ACKNOWLEDGED = bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])
_READY = grpc.ChannelConnectivity.READY
_OWN = [("grpc.use_local_subchannel_pool", 1)]


@limit("connection", "rivals.join, rivals.kill: a bare connection, until it is ready and until it is known to be gone")
def connection(site: Site) -> Figures:
    """To a server that does nothing but shake hands and hang up, in turns. Needs Go."""
    program = str(building.build())
    closed: queue.Queue[int] = queue.Queue()
    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=_hang_up, args=(door, closed), daemon=True).start()
        address = f"127.0.0.1:{door.getsockname()[1]}"
        makers = {
            "aio": site.python("-m", "bench.limits.connection", address, name="aio"),
            "go": site.start([program, "watch", address], name="go"),
        }
        ms: dict[str, dict[str, list[float]]] = {name: {"made": [], "ready": [], "gone": []} for name in makers}
        for number in range(share(site, _ROUNDS) + 3):
            for name in list(makers)[:: 1 if number % 2 else -1]:
                told = json.loads(makers[name].ask("once more"))
                told["gone"] -= closed.get(timeout=10)
                if number >= 3:
                    for what, ns in told.items():
                        ms[name][what].append(ns / 1e6)
    told = {"made": "a bare channel is made", "ready": "… and ready", "gone": "a connection that closed is known to be"}
    return {f"{text}: grpc.aio beside grpc-go": _beside(ms, what) for what, text in told.items()}


def _beside(ms: dict[str, dict[str, list[float]]], what: str) -> Finding:
    return beside(ms["aio"][what], ms["go"][what])


def _hang_up(door: socket.socket, closed: queue.Queue[int]) -> None:
    """Greet whoever comes, hang up after a moment, and tell when."""
    while True:
        try:
            one, _ = door.accept()
        except OSError:
            return
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.recv(65536)
        one.sendall(_SETTINGS + _ACKNOWLEDGED)
        time.sleep(_REST)
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.recv(65536)  # what is left unread would make a reset of the end
        moment = time.time_ns()
        one.close()
        closed.put(moment)


async def _watch(address: str) -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while await orders.readline():
        begun = time.perf_counter_ns()
        async with grpc.aio.insecure_channel(f"ipv4:{address}", _OWN) as channel:
            made = time.perf_counter_ns() - begun
            while (state := channel.get_state(try_to_connect=True)) is not _READY:
                await channel.wait_for_state_change(state)
            ready = time.perf_counter_ns() - begun
            await channel.wait_for_state_change(_READY)
            gone = time.time_ns()
        print(json.dumps({"made": made, "ready": ready, "gone": gone}), flush=True)


if __name__ == "__main__":
    asyncio.run(_watch(sys.argv[1]))
