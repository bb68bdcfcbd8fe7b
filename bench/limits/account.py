"""What a mesh server's account of each call costs: by CPU beside a plain one in its process, and by instructions.

python -m bench.limits.account   serves in one process: plain, mesh, and mesh with its handlers unwrapped
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc

from bench import serving
from bench.limits import Figures, limit, share
from bench.measure import Finding, Samples, alone
from bench.row import Skipped
from bench.site import Site
from users.v1 import users_pb2, users_pb2_grpc

_KINDS = ("plain", "mesh", "unwrapped")
_SETS, _ROUNDS = 6, 20
_CALLS, _LOOKS = 300, 5
_TOTAL = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


@limit("account", "server.unary: one process that serves plainly and as a mesh, by turns")
def account(site: Site) -> Figures:
    """A few processes: where things lie in memory costs or saves one some per cent for all of its life."""
    whole = Samples()
    for _ in range(_SETS if site.scale == 1.0 else 1):
        process = site.python("-m", "bench.limits.account", *_KINDS, name="all")
        servers = [(kind, at, process.pid) for kind, at in zip(_KINDS, process.line().split(), strict=True)]
        job = {"servers": servers}
        arms = "bench.arms.driven:get_user"
        whole.extend(site.compare(arms, job, calls=200, rounds=_ROUNDS, processes=1, cores="apart"))
        site.sweep()
    return {
        "a mesh server's call, of a plain one's": whole.compared("mesh"),
        "… with its handlers unwrapped": whole.compared("unwrapped"),
    }


@limit("instructions", "server.unary: instructions of a mesh server for a call, by callgrind")
def instructions(site: Site) -> Figures:
    """One call at a time, once all is warm. Needs valgrind."""
    for program in ("valgrind", "callgrind_control"):
        if shutil.which(program) is None:
            raise Skipped(f"no {program} here: it counts the instructions")
    told = {
        "unwrapped": "a mesh server with its handlers unwrapped, a call",
        "mesh": "a mesh server as it comes, a call",
    }
    return {text: asyncio.run(_counted(site, kind)) for kind, text in told.items()}


async def _counted(site: Site, kind: str) -> Finding:
    out = site.folder / f"callgrind-{kind}"
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--fair-sched=yes", f"--callgrind-out-file={out}"]
    argv = [*valgrind, sys.executable, "-m", "bench.limits.account", "still", kind]
    process = site.start(argv, name=kind, env={"PYTHONHASHSEED": "0"})
    found: list[float] = []
    async with grpc.aio.insecure_channel(process.line()) as channel:
        get: Any = users_pb2_grpc.UserServiceStub(channel).GetUser

        async def call(number: int) -> None:
            for _ in range(number):
                await get(users_pb2.GetUserRequest(id="ada"), timeout=60)

        calls = site.calls(_CALLS)
        await call(calls)
        _control(process.pid, out, "-i", "on")
        await call(calls)
        for look in range(1, share(site, _LOOKS) + 1):
            _control(process.pid, out, "-z")
            await call(calls)
            _control(process.pid, out, "-d")
            # A file for each thread that did something, or one: the totals are those of all.
            files = out.parent.glob(f"{out.name}.{look}*")
            found.append(sum(int(_TOTAL.findall(file.read_text())[-1]) for file in files) / calls / 1000)
    site.stop(process)
    return alone(found, unit="thousand instructions")


def _control(pid: int, out: Path, *order: str) -> None:
    subprocess.run(["callgrind_control", *order, str(pid)], cwd=out.parent, capture_output=True, check=True, timeout=60)


async def _serve(*kinds: str) -> None:
    """Serve in these ways until stdin closes."""
    from mesh.resilience import limiter
    from mesh.server import gate, handlers
    from mesh.telemetry import tally

    if "still" in kinds:  # under valgrind a call takes fifty times as long, and would pay for what is done by the clock
        rare = {(limiter, "_WINDOW"): 1e6, (gate, "_LOOK_EVERY"): 1e6, (gate, "_LATE"): 1e6, (tally, "EVERY"): 1e6}
        for (owner, name), seconds in rare.items():
            assert hasattr(owner, name)
            setattr(owner, name, seconds)
    wrap, addresses = handlers._wrap, []
    for kind in kinds if "still" not in kinds else kinds[1:]:
        handlers._wrap = wrap if kind != "unwrapped" else lambda handler, method, servicer: handler
        addresses.append(await serving.KINDS["mesh" if kind == "unwrapped" else kind]())
    print(*addresses, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
