"""Start-up and size: what `import mesh` costs, how long the first call takes, what an installation brings."""

from __future__ import annotations

import re
import time
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from bench import ROOT
from bench.measure import Finding, Samples
from bench.row import Spec, measures
from bench.site import Site

_CORE = "grpc-mesh"
_BARE = ("grpcio", "protobuf")
_END = "print(time.process_time_ns(), int(open('/proc/self/statm').read().split()[1]) * 4096, flush=True)"
_GRPC = f"import time, grpc.aio; {_END}"
_IMPORT = {"grpc": _GRPC, "mesh": f"import time, mesh; {_END}"}
_CLIENT = {"grpc": _GRPC, "mesh": f"import time, mesh; mesh.connect; {_END}"}
_LIMIT = (
    "Our own 46 modules and a channel: 15 ms where Python and all that a stub needs take 85 (`python -m bench.limits "
    "modules`). prometheus_client, OpenTelemetry, tenacity, the balancers and the registry are imported when they are "
    "first used."
)
_CALL = """
import asyncio, sys, time
from users.v1 import users_pb2, users_pb2_grpc
{imports}
async def main():
    async with {channel} as channel:
        await users_pb2_grpc.UserServiceStub(channel).GetUser(users_pb2.GetUserRequest(id="ada"), timeout=10)
        {end}
asyncio.run(main())
"""
_CALLS = {
    "raw": _CALL.format(imports="import grpc", channel="grpc.aio.insecure_channel(sys.argv[1])", end=_END),
    "mesh": _CALL.format(
        imports="import mesh", channel="mesh.connect('users.v1.UserService', endpoints=[sys.argv[1]])", end=_END
    ),
}


@measures(
    Spec("startup.import", "`import mesh`", "`import grpc.aio` alone"),
    Spec("startup.memory", "memory after `import mesh`", "after `import grpc.aio` alone"),
)
def imports(site: Site) -> dict[str, Finding]:
    """CPU and memory of fresh processes."""
    _, cpu, memory = _starts(site, _IMPORT)
    return {"startup.import": cpu.compared("mesh"), "startup.memory": memory.compared("mesh")}


@measures(
    Spec("startup.client", "`import mesh` and what `mesh.connect` loads, gRPC among it", "`import grpc.aio` alone"),
    Spec("startup.client-memory", "memory after that", "after `import grpc.aio` alone"),
)
def client(site: Site) -> dict[str, Finding]:
    """The same for what `import mesh` leaves for later."""
    _, cpu, memory = _starts(site, _CLIENT)
    return {"startup.client": cpu.compared("mesh"), "startup.client-memory": memory.compared("mesh")}


@measures(
    Spec(
        "startup.first-call", "from a process's start to its first answer: CPU", "a raw stub", goal=1.25, limit=_LIMIT
    ),
    Spec(
        "startup.first-call-time",
        "from a process's start to its first answer: time",
        "a raw stub",
        goal=1.25,
        limit=_LIMIT,
    ),
)
def first_call(site: Site) -> dict[str, Finding]:
    """Fresh processes, each of which makes one call."""
    _, address = site.serve("plain")
    wall, cpu, _ = _starts(site, _CALLS, address)
    return {"startup.first-call": cpu.compared("mesh"), "startup.first-call-time": wall.compared("mesh")}


def _starts(site: Site, programs: dict[str, str], *args: str) -> tuple[Samples, Samples, Samples]:
    """Run fresh processes in turns; return their time and CPU in ms and their memory in MB."""
    (_, bare), (ours, full) = programs.items()
    found = [Samples(others={ours: []}, unit=unit) for unit in ("ms", "ms CPU", "MB")]
    for code in (bare, full):  # read from the disk once, so that all find it in memory
        _start(site, code, *args)
    for _ in range(site.rounds):
        # Each as often behind itself as behind the other.
        runs = [_start(site, code, *args) for code in (bare, full, full, bare)]
        for samples, before, first, second, after in zip(found, *runs, strict=True):
            samples.baseline.append(before)
            samples.again.append(after)
            samples.others[ours].append((first + second) / 2)
    return found[0], found[1], found[2]


def _start(site: Site, code: str, *args: str) -> tuple[float, float, float]:
    begun = time.perf_counter()
    # Compiled once and then read, as in an installation; wherever the checkout's own compiled files are.
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(site.folder / "compiled")}
    process = site.python("-c", code, *args, name="start", env=env)
    cpu, memory = map(int, process.line().split())
    took = time.perf_counter() - begun
    site.stop(process)
    return took * 1000, cpu / 1e6, memory / 1024**2


@measures(
    Spec("startup.size", "a core install and all it needs, on disk", "`grpcio` and `protobuf` with all they need")
)
def size(site: Site) -> Finding:
    """Megabytes on disk, of the packages and all they need."""
    core, bare = _closure({_CORE}), _closure(set(_BARE))
    ours, baseline = sum(map(_size_mb, core)), sum(map(_size_mb, bare))
    ratio = ours / baseline  # no repeats: there is nothing that an interval could tell
    found = Finding(ours, baseline, ratio, ratio, ratio, unit="MB")
    found.facts["packages"] = len(core)
    found.notes = ", ".join(f"{name} {_size_mb(name):.1f}" for name in sorted(core, key=_size_mb, reverse=True))
    return found


def _closure(names: set[str]) -> set[str]:
    """Return the packages and all that they need, extras left out."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        for requirement in distribution(name).requires or ():
            needed = re.match(r"[A-Za-z0-9._-]+", requirement)
            if needed and "extra ==" not in requirement and _is_here(needed.group()):
                names |= {needed.group().lower().replace("_", "-")} - found
    return found


def _is_here(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:  # wanted by another version of Python only
        return False
    return True


def _size_mb(name: str) -> float:
    if name == _CORE:
        return _own_size_mb()
    return _files_mb(distribution(name))


def _files_mb(found: Distribution) -> float:
    paths = [Path(str(file.locate())) for file in found.files or () if "__pycache__" not in str(file)]
    return sum(path.stat().st_size for path in paths if path.exists()) / 1024**2


def _own_size_mb() -> float:
    """Of our own, as it is in the wheel: a checkout is installed by a link only."""
    folders = [ROOT / "src" / "mesh", ROOT / "src" / "usersvc", ROOT / "generated"]
    files = [f for folder in folders for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    return sum(f.stat().st_size for f in files) / 1024**2
