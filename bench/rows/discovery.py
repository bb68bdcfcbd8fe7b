"""Discovery at scale: what one change costs everybody who watches a fleet of 1 to 10,000 registrations in a real etcd.

The fleet is simulated (`bench.fleet`): real records under real leases, nobody behind them. One more instance comes,
says goodbye and goes, again and again, at fixed times that wait for no answer; each of these is one change. Watchers
(`bench.watchers`) have an etcd session each and share a handful of processes. Beside them as many bare stubs of etcd's
Watch see the same changes under another prefix, in turn: they are the baseline of what noticing must cost.

The control plane has as many clients, and what it costs and sends is what is looked at: its clients are bare streams.
Each of them is sent all endpoints at each change, 81 MB for 200 clients of 10,000, so there changes come more slowly.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.fleet import MESH, RAW, Etcd, Fleet
from bench.measure import Finding, alone, compare, interval
from bench.row import Spec, measures
from bench.site import Process, Site
from bench.watching import Account, Seen, Watching

SIZES = (1, 100, 1_000, 10_000)
# Watchers, or clients of the control plane, and over which further processes each step is spread.
STEPS = {1: (1,), 10: (9,), 50: (20, 20), 200: (75, 75)}
_CLIENTS = 10
"""Those that the rows of the control plane are about."""
_VISITS, _VISITS_OF_MANY = 24, 8
"""The second where there are more watchers than the rows are about."""
_PUSHES, _PUSHES_BETWEEN = 20, 5
"""The second for the sizes and clients that only the plot is about."""
_STUBS = "the same watch by bare grpc stubs of etcd, which read the events and keep nothing"
_SMALL = "the same with 100 instances"
_IDLE, _LOOKS = 1.5, 5
_PLANE_PACE = 0.2  # above the 50 ms for which a control plane gathers news
_SENDING = 4e-7  # seconds more between changes for each endpoint that each client is sent

Point = dict[str, float]


@measures(
    Spec(
        "discovery.notice",
        "10,000 instances, 50 watchers: time until the median one notices a change",
        _STUBS,
        noise=0.3,
    ),
    Spec("discovery.change", "10,000 instances: CPU of a watcher for one change", goal=1.0, noise=0.2),
    Spec("discovery.growth", "what one change costs a watcher of 10,000", "a watcher of 100", noise=0.2),
    Spec("discovery.bytes", "10,000 instances, 50 watchers: bytes per change and watcher", _STUBS, noise=0.02),
    Spec("discovery.memory", "10,000 instances, 50 watchers: memory of each", noise=0.1),
)
def watchers(site: Site) -> Mapping[str, Finding]:
    """Watchers of the registry."""
    return asyncio.run(_watchers(site))


@measures(
    Spec(
        "discovery.plane",
        "control plane, 10,000 instances: time until the last of 10 clients has a change",
        _SMALL,
        noise=0.3,
    ),
    Spec(
        "discovery.plane-cpu",
        "control plane, 10,000 instances, 10 clients: its CPU for one change",
        _SMALL,
        noise=0.2,
    ),
    Spec(
        "discovery.plane-bytes",
        "control plane, 10,000 instances, 10 clients: bytes per change and client",
        _SMALL,
        noise=0.02,
    ),
)
def plane(site: Site) -> Mapping[str, Finding]:
    """The control plane between the registry and its xDS clients."""
    return asyncio.run(_plane(site))


async def _watchers(site: Site) -> dict[str, Finding]:
    curve: list[Point] = []
    seen: dict[tuple[int, int], tuple[Seen, Seen]] = {}
    idle: dict[tuple[int, int], float] = {}
    with Etcd(site.folder) as etcd:
        empty = Watching(site, {"kind": "mesh", "etcd": etcd.endpoint})
        await empty.add([0])
        base = empty.memory_mb()
        async with Fleet(etcd.endpoint) as fleet:
            for size in _some(site, SIZES):
                await fleet.grow(size)
                ours = Watching(site, {"kind": "mesh", "etcd": etcd.endpoint})
                raw = Watching(site, {"kind": "raw", "etcd": etcd.endpoint})
                for count in _some(site, tuple(STEPS)):
                    await ours.add(STEPS[count])
                    await raw.add(STEPS[count])
                    seen[size, count], idle[size, count] = await _visits(site, etcd, fleet, ours, raw)
                    point = _point(size, ours, *seen[size, count], idle[size, count], base)
                    curve.append(point | {"etcd_memory_mb": etcd.memory_mb()})
                    site.tell(_told(curve[-1]))
                ours.close()
                raw.close()
    return _findings(curve, seen, idle)


async def _visits(
    site: Site, etcd: Etcd, fleet: Fleet, ours: Watching, raw: Watching
) -> tuple[tuple[Seen, Seen], float]:
    """Let guests visit; return what both kinds saw, and the CPU of one of ours when nothing changes, in ms a second."""
    pace = 0.04 + 0.0008 * ours.count
    idle = await _idle(site, ours.cpu_ms, raw.cpu_ms)
    both = Seen(), Seen()
    turns = list(zip((ours, raw), (MESH, RAW), both, idle, strict=True))
    for number in range(max(2, round((_VISITS if ours.count <= 50 else _VISITS_OF_MANY) * site.scale))):
        for watching, prefix, seen, resting in turns if number % 2 else reversed(turns):
            await watching.forget()
            changes = [(change, True) for change in fleet.changes(prefix)]
            await watching.visit(changes, pace, seen, cost=watching.cpu_ms, etcd=etcd.cpu_ms, sent=etcd.sent)
            seen.cpu[-1] -= resting * pace
    return both, idle[0] / ours.count


async def _idle(site: Site, *accounts: Account, looks: int = 1) -> list[float]:
    """Return the CPU of each when nothing changes, in milliseconds per second: the median of so many looks."""
    await asyncio.sleep(0.3)
    seconds = max(0.2, _IDLE * site.scale) / looks
    used = []
    for _ in range(looks):
        before = [account() for account in accounts]
        await asyncio.sleep(seconds)
        used.append([account() - spent for account, spent in zip(accounts, before, strict=True)])
    return [statistics.median(each) / seconds for each in zip(*used, strict=True)]


def _point(size: int, watching: Watching, ours: Seen, raw: Seen, idle: float, base: float) -> Point:
    count = watching.count
    return {
        "instances": size,
        "watchers": count,
        "p50_ms": ours.quantile(0.5),
        "p99_ms": ours.quantile(0.99),
        "last_ms": ours.last(),
        "raw_p50_ms": raw.quantile(0.5),
        "raw_p99_ms": raw.quantile(0.99),
        "cpu_ms": statistics.median(ours.cpu) / count,
        "raw_cpu_ms": statistics.median(raw.cpu) / count,
        "idle_ms_per_s": idle,
        "bytes": statistics.median(ours.sent) / count,
        "raw_bytes": statistics.median(raw.sent) / count,
        "memory_mb": (watching.memory_mb() - base * len(watching)) / count,
        "etcd_cpu_ms": statistics.median(ours.etcd),
    }


def _told(point: Point) -> str:
    return (
        f"{point['instances']:.0f} instances, {point['watchers']:.0f} watchers: noticed after {point['p50_ms']:.1f} ms"
        f" (p99 {point['p99_ms']:.1f}; stubs {point['raw_p50_ms']:.1f}, {point['raw_p99_ms']:.1f}), CPU"
        f" {point['cpu_ms']:.2f} ms (stubs {point['raw_cpu_ms']:.2f}), {point['bytes']:.0f} bytes,"
        f" {point['memory_mb']:.1f} MB each"
    )


def _findings(
    curve: list[Point], seen: Mapping[tuple[int, int], tuple[Seen, Seen]], idle: Mapping[tuple[int, int], float]
) -> dict[str, Finding]:
    largest, many = max(size for size, _ in seen), min(50, max(count for _, count in seen))
    small, few = min(100, largest), min(10, many)
    ours, raw = seen[largest, many]
    notice = compare(ours.medians(), raw.medians(), unit="ms")
    notice.facts = {
        "p50_ms": ours.quantile(0.5), "p99_ms": ours.quantile(0.99),
        "baseline_p50_ms": raw.quantile(0.5), "baseline_p99_ms": raw.quantile(0.99),
        "curve": [{k: float(f"{v:.4g}") for k, v in point.items()} for point in curve],
    }  # fmt: skip
    spent = {size: [cpu / few for cpu in seen[size, few][0].cpu] for size in (small, largest)}
    change = alone(spent[largest], unit="ms CPU")
    change.facts = {"stub_cpu_ms": statistics.median(seen[largest, few][1].cpu) / few}
    change.facts["idle_ms_per_s"] = idle[largest, few]
    lone = statistics.median(seen[largest, 1][0].cpu)
    change.facts["lone_cpu_ms"] = lone
    change.notes = (
        f"of ten watchers in two processes; one that has a process to itself is woken for each change alone and takes"
        f" {lone:.2f} ms, a bare stub in its place {statistics.median(seen[largest, 1][1].cpu):.2f} ms"
    )
    notice.notes = (
        f"{many} watchers share the cores of one machine and wait for each other: the first knew after"
        f" {statistics.median(min(delays) for delays in ours.delays):.1f} ms, the last after {ours.last():.1f} ms; "
    )
    (point,) = (p for p in curve if (p["instances"], p["watchers"]) == (largest, many))
    notice.notes += f"{_etcds(point)}; {_again(raw, notice)}"
    return {
        "discovery.notice": notice,
        "discovery.change": change,
        "discovery.growth": _apart(spent[largest], spent[small], "ms CPU"),
        "discovery.bytes": compare([s / many for s in ours.sent], [s / many for s in raw.sent], unit="bytes"),
        # Looked at once: no repeats, so no interval.
        "discovery.memory": Finding(point["memory_mb"], unit="MB"),
    }


def _again(raw: Seen, notice: Finding) -> str:
    """Tell how far the stubs differ from themselves: each visit behind two of ours over the one before these.

    No control like that of CPU: times to notice of a few visits do not stay within 3 % of each other.
    """
    times = raw.medians()
    visits = [times[at : at + 3] for at in range(0, len(times), 3)]
    pairs = zip(visits[1::2], visits[::2], strict=False)
    ratios = [after / before for pair in pairs for after, before in zip(*pair, strict=True)]
    low, high = interval(ratios)
    notice.facts["stubs_again"] = statistics.median(ratios)
    return f"the stubs over themselves: {notice.facts['stubs_again']:.2f} ({low:.2f} to {high:.2f})"


def _etcds(point: Point) -> str:
    return (
        f"etcd itself takes {point['etcd_cpu_ms']:.1f} ms of CPU for a change and has {point['etcd_memory_mb']:.0f} MB"
    )


def _apart(ours: Sequence[float], baseline: Sequence[float], unit: str) -> Finding:
    """Compare values that were not taken in pairs: the ratio of medians, its interval from the intervals of both."""
    (low, high), (least, most) = interval(ours), interval(baseline)
    top, bottom = statistics.median(ours), statistics.median(baseline)
    samples = {"ours": [float(f"{v:.5g}") for v in ours], "baseline": [float(f"{v:.5g}") for v in baseline]}
    return Finding(top, bottom, top / bottom, low / most, high / least, unit, samples=samples)


async def _plane(site: Site) -> dict[str, Finding]:
    seen: dict[tuple[int, int], Seen] = {}
    curve: list[Point] = []
    with Etcd(site.folder) as etcd:
        async with Fleet(etcd.endpoint) as fleet:
            for size in _some(site, SIZES):
                await fleet.grow(size)
                program, address = _control_plane(site, etcd)
                clients = Watching(site, {"kind": "xds", "plane": address})
                for count in _some(site, tuple(STEPS)):
                    await clients.add(STEPS[count])
                    seen[size, count] = await _pushes(site, etcd, fleet, clients, program)
                    point = _plane_point(size, count, seen[size, count], program)
                    curve.append(point | {"etcd_memory_mb": etcd.memory_mb()})
                    site.tell(
                        "{instances:.0f} instances, {clients:.0f} clients: {p50_ms:.1f} ms, p99 {p99_ms:.1f},"
                        " {cpu_ms:.1f} ms CPU, {bytes:.0f} bytes, {memory_mb:.0f} MB".format(**curve[-1])
                    )
                clients.close()
                site.stop(program)
    return _plane_findings(curve, seen)


def _control_plane(site: Site, etcd: Etcd) -> tuple[Process, str]:
    from support.ports import free_port

    address = f"127.0.0.1:{free_port()}"
    env = {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": MESH, "MESH_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "mesh", "control-plane", "--listen", address]
    return site.start(command, name="plane", env=env), address


async def _pushes(site: Site, etcd: Etcd, fleet: Fleet, clients: Watching, program: Process) -> Seen:
    seen = Seen()

    def cost() -> float:
        return program.cpu_ns() / 1e6

    pace = _PLANE_PACE + _SENDING * fleet.size * clients.count
    # Several looks: etcd cleans up at times for longer than many changes take it.
    idle, idle_etcd = await _idle(site, cost, etcd.cpu_ms, looks=_LOOKS)
    times = _PUSHES if fleet.size in (100, SIZES[-1]) and clients.count == _CLIENTS else _PUSHES_BETWEEN
    for number in range(1 + max(2, round(times * site.scale))):
        await clients.forget()
        come, goodbye, go = fleet.changes(MESH)
        # Who said goodbye has left the endpoints already: that its key goes is no news to a client.
        changes = ((come, True), (goodbye, True), (go, False))
        into = seen if number else Seen()  # the first is to warm up
        await clients.visit(changes, pace, into, cost=cost, etcd=etcd.cpu_ms, sent=clients.received)
        into.cpu[-1] -= idle * pace * 3 / 2
        into.etcd[-1] -= idle_etcd * pace * 3 / 2
    return seen


def _plane_point(size: int, count: int, seen: Seen, program: Process) -> Point:
    return {
        "instances": size,
        "clients": count,
        "p50_ms": seen.quantile(0.5),
        "p99_ms": seen.quantile(0.99),
        "last_ms": seen.last(),
        "etcd_cpu_ms": statistics.median(seen.etcd),
        "cpu_ms": statistics.median(seen.cpu),
        "bytes": statistics.median(seen.sent) / count,
        "memory_mb": program.memory_mb(),
        "peak_mb": _peak_mb(program.pid),
    }


def _peak_mb(pid: int) -> float:
    """Return the most memory that a process had: of a control plane, while responses to many clients are under way."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _plane_findings(curve: list[Point], seen: Mapping[tuple[int, int], Seen]) -> dict[str, Finding]:
    points = {(point["instances"], point["clients"]): point for point in curve}
    largest, many = max(size for size, _ in seen), max(count for _, count in seen if count <= _CLIENTS)
    least = min(100, largest)
    ours, small = seen[largest, many], seen[least, many]
    all_of = max(count for _, count in seen)
    time = _apart(ours.lasts(), small.lasts(), "ms")
    time.notes = (
        f"{_etcds(points[largest, many])}; the last of {all_of} has it after {seen[largest, all_of].last():.0f} ms"
    )
    time.facts = {
        "p50_ms": ours.quantile(0.5), "p99_ms": ours.quantile(0.99),
        "curve": [{k: float(f"{v:.4g}") for k, v in point.items()} for point in curve],
    }  # fmt: skip
    cpu = _apart(ours.cpu, small.cpu, "ms CPU")
    more = {
        size: (points[size, all_of]["cpu_ms"] - points[size, 1]["cpu_ms"]) / (all_of - 1) for size in (largest, least)
    }
    cpu.notes = (
        f"each client after the first adds {more[largest]:.2f} ms, with {least:,} instances {more[least]:.2f}:"
        f" {all_of} clients take {points[largest, all_of]['cpu_ms']:.0f} ms and {points[least, all_of]['cpu_ms']:.0f}"
    )
    size = _apart([s / many for s in ours.sent], [s / many for s in small.sent], "bytes")
    size.notes = (
        "EDS has all endpoints of a service in one resource, which each change sends anew:"
        f" {points[largest, all_of]['bytes'] * all_of / 1e6:.0f} MB to {all_of} clients, with which the control plane"
        f" comes to {points[largest, all_of]['peak_mb']:.0f} MB for a moment"
    )
    return {"discovery.plane": time, "discovery.plane-cpu": cpu, "discovery.plane-bytes": size}


def _some(site: Site, values: tuple[int, ...]) -> tuple[int, ...]:
    """All of them; for the bench's own test the first two."""
    return values if site.scale == 1.0 else values[:2]
