"""The edge: HTTP/JSON through Envoy, fed by our control plane, beside a gateway that a team writes with FastAPI.

Both stand before the same service, which answers with a constant; what is measured is the CPU of the one process
between it and the callers: Envoy with one worker, everything in envoy/front.yaml on; uvicorn with uvloop and httptools,
its access log off. Callers and service are as cheap as they can be (uvloop; Go, where there is Go), so that either edge
has a core to itself and is busy: what a request costs one that waits between requests is mostly the waking.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import ROOT, openloop
from bench.edges import SERVICE, answer
from bench.measure import Finding, Samples, compare
from bench.openloop import Latencies
from bench.row import Skipped, Spec, measures
from bench.site import Site
from mesh.instance import Endpoint

_ARMS = "bench.arms.edge:"
_GATEWAY = "a FastAPI gateway (uvicorn, uvloop, httptools) before the same service"
_GRPC = "gRPC to the same method through the same Envoy"
_BARE = "transcoder and router alone"
_RATE = 300


@measures(
    Spec("edge.get", "GET as JSON: requests per second of a core", _GATEWAY, goal=3.0, moonshot=5.0, lower=False),
    Spec("edge.transcoder", "GET as JSON: CPU of Envoy per request", _GRPC, goal=1.8, moonshot=1.5, noise=0.04),
)
def get(site: Site) -> Mapping[str, Finding]:
    """Reads."""
    return _json(site, "get", "edge.get", "edge.transcoder")


@measures(
    Spec("edge.create", "POST as JSON: requests per second of a core", _GATEWAY, goal=3.0, moonshot=5.0, lower=False),
    Spec("edge.transcoder-post", "POST as JSON: CPU of Envoy per request", _GRPC, goal=1.8, moonshot=1.5, noise=0.04),
)
def create(site: Site) -> Mapping[str, Finding]:
    """Writes."""
    return _json(site, "create", "edge.create", "edge.transcoder-post")


@measures(
    Spec("edge.fed", "Envoy fed by the control plane: CPU per request", "Envoy with the same in a file", goal=1.02)
)
def fed(site: Site) -> Finding:
    """What it costs that routes, clusters and filters arrive."""
    return _compared(site, "fed", {"fixed": ()}, calls=600, rounds=24).compared("fed")


@measures(Spec("edge.parts", "GET as JSON through all of envoy/front.yaml: CPU per request", _BARE))
def parts(site: Site) -> Finding:
    """What each part of the front costs a read."""
    return _parts(site, "get")


@measures(Spec("edge.parts-post", "POST as JSON through all of envoy/front.yaml: CPU per request", _BARE))
def parts_post(site: Site) -> Finding:
    """What each part of the front costs a write."""
    return _parts(site, "create")


def _parts(site: Site, method: str) -> Finding:
    from bench.fixed_front import PARTS

    files = {"bare": tuple(PARTS), "all": (), **{part: (part,) for part in PARTS}}
    with edges(site, files) as job:
        samples = site.compare(
            f"{_ARMS}parts", {**job, "method": method}, calls=400, rounds=48, processes=1, cores="apart"
        )
    found = samples.compared("all")
    costs = {
        part: statistics.median(a - b for a, b in zip(samples.others["all"], samples.others[part], strict=True))
        for part in PARTS
    }
    found.facts = {f"{part.replace(' ', '_')}_us": cost for part, cost in costs.items()}
    found.notes = "of it, in µs: " + ", ".join(f"{part} {round(cost)}" for part, cost in costs.items())
    return found


@measures(Spec("edge.latency", f"GET as JSON, {_RATE} requests a second: median latency", _GATEWAY, noise=0.1))
def latency(site: Site) -> Finding:
    """How long callers wait."""
    with edges(site) as job:
        order = {**job, "rate": 3 * _RATE, "seconds": 12 * min(1.0, site.scale)}
        told = site.child({"call": f"{_ARMS}latency", "job": order}, name="latency")
    found = {name: Latencies.of_json(latencies) for name, latencies in told.items()}
    return openloop.compared(found["envoy"], found["gateway"], found["again"])


def _json(site: Site, arms: str, rate: str, transcoder: str) -> dict[str, Finding]:
    samples = _compared(site, arms, calls=300, rounds=20)
    return {rate: _per_core(samples), transcoder: samples.compared("json")}


def _compared(
    site: Site, arms: str, files: Mapping[str, Collection[str]] | None = None, *, calls: int, rounds: int
) -> Samples:
    """Compare fresh processes, several times: two Envoys of one configuration differ by some per cent for life."""
    samples = Samples()
    for _ in range(6 if site.scale == 1.0 else 1):
        with edges(site, files) as job:
            samples.extend(site.compare(_ARMS + arms, job, calls=calls, rounds=rounds, processes=1, cores="apart"))
        site.sweep()
    return samples


def _per_core(samples: Samples) -> Finding:
    """Turn CPU per request into requests per second of a core, ours over the gateway's."""
    ours, theirs = ([1e6 / us for us in samples.others[name]] for name in ("json", "gateway"))
    found = compare(ours, theirs, unit="requests/core s", parts=samples.parts)
    found.control = samples.compared("json").control
    return found


def build() -> Path | None:
    """Build the service in Go, unless it was; return the program, or None without Go."""
    go = shutil.which("go")
    if go is None:
        return None
    program = ROOT / ".tools" / "bin" / "behind"
    program.parent.mkdir(parents=True, exist_ok=True)
    command = [go, "build", "-ldflags=-s -w", "-o", str(program), "."]
    subprocess.run(command, cwd=ROOT / "bench" / "behind", check=True, capture_output=True, timeout=600)
    return program


@contextmanager
def edges(site: Site, files: Mapping[str, Collection[str]] | None = None) -> Iterator[dict[str, Any]]:
    """Start the service with its control plane, Envoy before it, and beside it the gateway; or, for each of `files`, an
    Envoy of a file without the parts that it names.
    """
    from support.envoy import Envoy

    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("fastapi") is None:
        raise Skipped("no FastAPI here: pip install 'grpc-mesh[bench]'")
    behind = json.loads(site.python("-m", "bench.edges", *_behind(site), name="edges").line())
    plane = Endpoint.parse(behind["plane"])
    with ExitStack() as stack:
        envoy = stack.enter_context(Envoy(site.folder, plane, name=f"fed-{plane.port}"))
        envoy.wait_ready()
        job = {"edge": str(envoy.edge), "edge_pid": envoy.pid, "loop": "uvloop"}
        if files is None:
            yield job | _gateway(site, behind["service"])
        else:
            yield job | {"files": {name: _fixed(site, stack, plane, name, parts) for name, parts in files.items()}}


def _behind(site: Site) -> list[str]:
    """Start the service in Go; return its port for `bench.edges`, or nothing without Go: then that serves itself."""
    if site.scale < 1:
        return []
    program = build()
    if program is None:
        site.tell("no Go here: the service behind is in Python and takes CPU that the edges could have")
        return []
    return [site.start([str(program), answer().hex()], name="behind", env={"GOMAXPROCS": "1"}).line()]


def _gateway(site: Site, service: str) -> dict[str, Any]:
    from support.edge import wait_until
    from support.ports import free_port

    port = free_port()
    options = f"--port {port} --loop uvloop --http httptools --no-access-log --log-level warning"
    process = site.start(
        [sys.executable, "-m", "uvicorn", "bench.gateway:app", *options.split()],
        name="gateway",
        env={"SERVICE": service},
    )
    wait_until(lambda: _listens(port), "the gateway listens")
    return {"gateway": f"127.0.0.1:{port}", "gateway_pid": process.pid}


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


def _fixed(site: Site, stack: ExitStack, plane: Endpoint, called: str, without: Collection[str]) -> tuple[str, int]:
    from bench.fixed_front import fixed
    from support.envoy import Envoy

    name = f"fixed-{plane.port}-{called.replace(' ', '-')}"
    envoy = Envoy(site.folder, plane, name=name)
    path = site.folder / f"{name}.yaml"
    path.write_text(fixed(path.read_text(), plane, SERVICE, without))
    stack.enter_context(envoy)
    envoy.wait_ready()
    return str(envoy.edge), envoy.pid
