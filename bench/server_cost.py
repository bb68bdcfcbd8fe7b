"""What a mesh server costs over a plain grpc.aio server: CPU of the server's process per call, the two in turns.

    python bench/server_cost.py [--rounds 20] [--calls 2000] [--at-once 50]

Both serve one servicer from one process each; a round is as many calls to the one and then to the other, so whatever
else the machine does falls on both. CPU is the kernel's own account of the process, threads included.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
from pathlib import Path

import grpc

from users.v1 import users_pb2, users_pb2_grpc

KINDS = ("plain", "mesh")


class Users(users_pb2_grpc.UserServiceServicer):
    """Answers at once, so that nothing but the server is measured."""

    async def GetUser(self, request: users_pb2.GetUserRequest, context: object) -> users_pb2.User:
        return users_pb2.User(id=request.id, name="Ada", email="ada@example.org")


async def _serve(kind: str) -> None:
    if kind == "plain":
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        users_pb2_grpc.add_UserServiceServicer_to_server(Users(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
    else:
        from mesh.memory import MemoryStore
        from mesh.server import Server
        from mesh.settings import Settings

        ours = Server(Users(), settings=Settings(), store=MemoryStore())
        await ours.start()
        print(ours.endpoint, flush=True)
    await asyncio.Event().wait()


def _cpu_ns(pid: int) -> int:
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


async def _drive(stub: users_pb2_grpc.UserServiceStub, calls: int, at_once: int) -> None:
    request = users_pb2.GetUserRequest(id="ada")

    async def some() -> None:
        for _ in range(calls // at_once):
            await stub.GetUser(request, timeout=10)

    await asyncio.gather(*(some() for _ in range(at_once)))


async def _measure(rounds: int, calls: int, at_once: int) -> None:
    processes = {k: subprocess.Popen([sys.executable, __file__, k], stdout=subprocess.PIPE, text=True) for k in KINDS}
    try:
        per_call: dict[str, list[float]] = {k: [] for k in KINDS}
        channels = {k: grpc.aio.insecure_channel(p.stdout.readline().strip()) for k, p in processes.items()}
        stubs = {k: users_pb2_grpc.UserServiceStub(c) for k, c in channels.items()}
        for stub in stubs.values():
            await _drive(stub, calls, at_once)
        for number in range(rounds):
            for kind in KINDS if number % 2 else reversed(KINDS):
                before = _cpu_ns(processes[kind].pid)
                await _drive(stubs[kind], calls, at_once)
                per_call[kind].append((_cpu_ns(processes[kind].pid) - before) / calls / 1000)
        for channel in channels.values():
            await channel.close()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    _tell(per_call)


def _tell(per_call: dict[str, list[float]]) -> None:
    """Print medians, and the quietest tenth beside them: neighbours on the machine only ever add."""
    quiet = {k: statistics.quantiles(v, n=10)[0] for k, v in per_call.items()}
    for kind in KINDS:
        print(f"{kind:6} {statistics.median(per_call[kind]):6.1f} µs CPU per call, quietest tenth {quiet[kind]:6.1f}")
    ratios = [m / p for p, m in zip(per_call["plain"], per_call["mesh"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"mesh / plain: median of rounds {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f}),"
        f" quietest tenth {quiet['mesh'] / quiet['plain']:.3f}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in KINDS:
        asyncio.run(_serve(sys.argv[1]))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
        parser.add_argument("--rounds", type=int, default=20)
        parser.add_argument("--calls", type=int, default=2000)
        parser.add_argument("--at-once", type=int, default=50)
        chosen = parser.parse_args()
        asyncio.run(_measure(chosen.rounds, chosen.calls, chosen.at_once))
