"""Beside Go: how soon clients follow what happens to instances, what fails meanwhile, what each costs its raw stub.

Ours, grpc-go with the stock etcd resolver, and go-zero's zrpc client call the same servers, registered in one etcd.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench import cores
from bench.measure import Arm, Finding, rounds
from bench.rivals import building
from bench.rivals.arena import KINDS, OURS, Rival, Spare, Story, beside, etcd_of, wait
from bench.rivals.relay import Relay
from bench.row import Spec, measures
from bench.site import ChildFailed, Process, Site
from support.etcd import Etcd

RIVALS = {"etcd": "grpc-go with etcd's resolver and retries", "zero": "go-zero's zrpc client"}
HAND = "a plain client by hand: bare grpc.aio that watches etcd and calls in turns"
LIKE = {"etcd": "mesh", "zero": "least", "hand": "mesh"}
"""Which of ours each is measured beside: who calls in turns beside the same, and who calls the less loaded of two."""
RATE = 1000.0
"""Calls a second, over the one instance that stays and the one that comes."""
_REPEATS = 20
_GOINGS = ("leave", "kill", "leave", "kill", "leave", "kill")
"""How the instances of one episode go."""
_SETTLE = 0.2
"""Seconds under load before an event."""
_FOLLOW = 0.15
"""Seconds that a client is given to follow one; on a quiet machine none that was measured needed a fifth of it."""
_COMPACTIONS = 5
_GIVE_UP = 4.0
"""Seconds after which a client that has not noticed is taken for one that never will."""
_AFTER = 1.0
"""Seconds of calls once the instance is gone that such a client still calls."""
_SLOW_RATE = 200.0
"""Calls a second there: it is whole seconds that are looked for."""
_AT_ONCE = 50
_COMPACTION = "from the return of a broken road to etcd, history compacted, to the first call on a new instance"
_EVENTS = {
    "join": "from registration to the first call on the new instance",
    "leave": "from SIGTERM and deregistration to the last call on the instance",
    "kill": "from kill -9 to the last attempt on the instance",
}
_FLOOR = (
    "What of it is Python's and grpc.aio's, a plain client by hand tells, which has it too: the note on this row has "
    "its figure beside Go's, and its own row has ours beside it. "
)
_WOKEN = (
    "An event of etcd costs a process that has slept 0.5 ms of CPU in a bare stub, 0.8 in ours (`python -m "
    "bench.limits event`): gRPC's core hands it through its threads to Python's event loop."
)
_HEARD = (
    "Of a connection that closed a bare grpc.aio channel knows after 0.60 ms, grpc-go after 0.42 (`python -m "
    "bench.limits connection`): the news goes through three threads to Python's event loop. The milliseconds that a "
    "process takes to die are in both figures."
)
_LIMITS = {
    "join": f"{_FLOOR}A bare grpc.aio channel is ready after 1.33 ms, grpc-go's after 0.81, and to make it is 0.44 and "
    f"0.11 of that (`python -m bench.limits connection`). {_WOKEN}",
    "leave": _FLOOR + _WOKEN,
    "kill": _FLOOR + _HEARD,
}
_NEWCOMER = (
    "Attempts at an instance that was killed go on until its connections end, 3 to 4 ms later. In the first 3 ms ours "
    "made 1.6, go-zero 1.0 (means of 42, 1.54 (1.17 to 2.03) times as many); with hedging off 1.1, 1.12 (0.85 to 1.47) "
    "times (`python -m bench.limits dying`): most of what is more are hedges, which go from the instance that now has "
    "all calls to the other one while nobody can know yet that it is dead. go-zero neither hedges nor repeats calls: "
    "rivals.failed has those that it loses."
)
_RETURN = (
    "A broken road is tried again after pauses that grow to half a second, half of each by chance: its return may be "
    "seen as late as that."
)
_BY = {"etcd": "", "zero": ", by KIND_LEAST_LOADED"}


@dataclass
class Followed:
    """What one kind of caller needed, in milliseconds, and what it lost."""

    ms: dict[str, list[float]] = field(default_factory=lambda: {event: [] for event in _EVENTS})
    calls: int = 0
    failed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_EVENTS, 0))

    def take(self, event: str, seconds: float | None) -> None:
        """Note one; None is a client that did not follow in time."""
        self.ms[event].append((_FOLLOW if seconds is None else seconds) * 1000)


def _specs() -> list[Spec]:
    specs = []
    for event, text in _EVENTS.items():
        for rival, name in RIVALS.items():
            limit = _LIMITS[event] + (f" {_NEWCOMER}" if (event, rival) == ("kill", "zero") else "")
            specs.append(Spec(f"rivals.{event}.{rival}", text + _BY[rival], name, goal=1.0, noise=0.5, limit=limit))
        specs.append(Spec(f"rivals.{event}.hand", text, HAND, noise=0.5))
    return specs


@measures(
    *_specs(),
    Spec("rivals.failed", "calls that failed while instances came, left and were killed", goal=0.0),
)
def follow(site: Site) -> dict[str, Finding]:
    """Instances come, leave and are killed under a steady load, for one kind of caller after the other, in turns."""
    program = _program(site)
    seen = {kind: Followed() for kind in KINDS}
    with ExitStack() as stack:
        etcd = stack.enter_context(etcd_of(site))
        bases = [Spare(site).address]
        rivals = [Rival(site, kind, etcd.endpoint, program=program, bases=bases) for kind in KINDS]
        repeats = max(2, round(_REPEATS * min(1.0, site.scale)))
        for number in range(repeats):
            site.tell(f"instances come and go, {number + 1} of {repeats}")
            for turn in range(len(rivals)):
                rival = rivals[(number + turn) % len(rivals)]
                _episode(site, rival, seen[rival.kind])
        for rival in rivals:
            rival.stop(site)
    return _findings(seen)


def _program(site: Site) -> str:
    site.tell("building the clients in Go")
    return str(building.build())


def _episode(site: Site, rival: Rival, seen: Followed) -> None:
    """Instances come and go, one after the other."""
    spares = [Spare(site) for _ in _GOINGS]
    addresses = [spare.address for spare in spares]  # all serve now, and rest
    came: list[float] = []
    went: list[float] = []

    def events() -> None:
        wait(_SETTLE)
        for spare, going in zip(spares, _GOINGS, strict=True):
            came.append(time.time())
            rival.registry.add(spare.address)
            wait(_FOLLOW)
            went.append(time.time())
            if going == "leave":
                rival.registry.leave(spare.address)
                spare.terminate()
                # The server closes its port half a second after it said so.
                wait(_FOLLOW + 0.5)
            else:
                spare.kill()
                wait(_FOLLOW)
            rival.registry.remove(spare.address)

    story = rival.under_load(RATE, events)
    for spare in spares:
        spare.stop()
    _take(story, addresses, came, went, seen)


def _take(story: Story, addresses: Sequence[str], came: Sequence[float], went: Sequence[float], seen: Followed) -> None:
    seen.calls += len(story.calls)
    begun = 0.0
    for address, going, join, leave, end in zip(addresses, _GOINGS, came, went, [*came[1:], math.inf], strict=True):
        seen.take("join", story.first_on(address, join))
        seen.take(going, story.last_on(address, leave))
        # A call may have begun before the kill that fails it.
        seen.failed["join"] += story.failed(begun, leave - 0.1)
        seen.failed[going] += story.failed(leave - 0.1, end)
        begun = end


@measures(
    *(
        Spec(f"rivals.compaction.{rival}", _COMPACTION, name, goal=1.0, noise=0.5, limit=_RETURN)
        for rival, name in RIVALS.items()
    ),
    Spec("rivals.after-compaction", "calls that failed when the old instances were gone then", goal=0.0),
)
def compaction(site: Site) -> dict[str, Finding]:
    """The road to etcd breaks, an instance comes, history is compacted, the road is back, and the old instance goes."""
    program = _program(site)
    kinds = ("mesh", *RIVALS)
    ms: dict[str, list[float]] = {kind: [] for kind in kinds}
    lost: dict[str, list[int]] = {kind: [] for kind in kinds}
    with etcd_of(site) as etcd, Relay(etcd.endpoint) as relay:
        repeats = max(1, round(_COMPACTIONS * min(1.0, site.scale)))
        for number in range(repeats):
            for turn in range(len(kinds)):
                kind = kinds[(number + turn) % len(kinds)]
                site.tell(f"{kind}: history is compacted behind its back, {number + 1} of {repeats}")
                took, failures = _cut_off(site, etcd, relay, program, kind, number)
                ms[kind].append(took * 1000)
                lost[kind].append(failures)
    found = {f"rivals.compaction.{r}": beside(ms["mesh"], ms[r]) for r in RIVALS}
    for finding in found.values():
        finding.notes = f"{_GIVE_UP:g} s stands for a client that had not noticed by then; {building.versions()}"
    told = ", ".join(f"{RIVALS[r]}: {statistics.median(lost[r]):g}" for r in RIVALS)
    after = Finding(statistics.median(lost["mesh"]), unit="calls", facts={"by_repeat": lost})
    after.notes = f"of {_AFTER * _SLOW_RATE:g} calls each time; {told}"
    return found | {"rivals.after-compaction": after}


def _cut_off(site: Site, etcd: Etcd, relay: Relay, program: str, kind: str, number: int) -> tuple[float, int]:
    """Return the seconds from the road's return to the first call on the new instance, and the calls lost later."""
    old, new = Spare(site), Spare(site)
    name = f"{kind}-cut-{number}"
    rival = Rival(site, kind, etcd.endpoint, program=program, bases=[old.address], via=relay.endpoint, name=name)
    times: dict[str, float] = {}

    def events() -> None:
        wait(_SETTLE)
        relay.close_road()
        rival.registry.add(new.address)
        etcd.ctl("compaction", str(rival.registry.change_elsewhere()))
        wait(_SETTLE)
        times["back"] = time.time()
        relay.open_road()
        wait(_GIVE_UP)
        rival.registry.leave(old.address)
        wait(_SETTLE)
        times["gone"] = time.time()
        old.kill()
        wait(_AFTER)

    story = rival.under_load(_SLOW_RATE, events)
    rival.stop(site)
    old.stop()
    new.stop()
    took = story.first_on(new.address, times["back"])
    return (_GIVE_UP if took is None or took > _GIVE_UP else took), story.failed(since=times["gone"])


@measures(
    *(
        Spec(
            f"rivals.overhead.{rival}",
            f"our channel's CPU per call{_BY[rival]}, over that of a raw grpc.aio stub",
            f"{name}, over a raw grpc-go connection",
        )
        for rival, name in RIVALS.items()
    ),
)
def overhead(site: Site) -> dict[str, Finding]:
    """What each stack costs beside the bare connection of its own language: a ratio of ratios."""
    program = _program(site)
    with etcd_of(site) as etcd:
        server, address = site.serve("plain")
        raw = {"python": site.python("-m", "bench.rivals.caller", "raw", address, name="raw-python")}
        raw["go"] = site.start([program, "raw", address], name="raw-go")
        for process in raw.values():
            process.line()
        stacks = {
            kind: Rival(site, kind, etcd.endpoint, program=program, bases=[address], noted=False).process
            for kind in KINDS
        }
        cores.part([process.pid for process in (*raw.values(), *stacks.values())], [server.pid])
        size = {"calls": site.calls(200), "count": 6 * site.rounds}
        ours = asyncio.run(rounds(_arm(raw["python"]), {kind: _arm(stacks[kind]) for kind in OURS}, **size))
        go = asyncio.run(rounds(_arm(raw["go"]), {rival: _arm(stacks[rival]) for rival in RIVALS}, **size))
    return {f"rivals.overhead.{rival}": _over(ours.compared(LIKE[rival]), go.compared(rival)) for rival in RIVALS}


def _arm(process: Process) -> Arm:
    def run(calls: int) -> None:
        told = json.loads(process.ask(f"closed {calls} {_AT_ONCE}"))
        if told["failed"]:
            raise ChildFailed(f"{told['failed']} of {process.name}'s calls failed")

    return Arm(run, (process.pid,))


def _over(ours: Finding, theirs: Finding) -> Finding:
    """Return the ratio of two ratios; its interval is the widest that both allow."""
    (a, a_low, a_high), (b, b_low, b_high) = (
        (float(f.ratio or 0), float(f.low or 0), float(f.high or 0)) for f in (ours, theirs)
    )
    found = Finding(a, b, a / b, a_low / b_high, a_high / b_low, unit="× its raw stub")
    # The worse of both controls.
    found.control = max((ours.control or 1.0, theirs.control or 1.0), key=lambda control: abs(control - 1))
    found.facts = {
        "us": ours.ours,
        "raw_us": ours.baseline,
        "baseline_us": theirs.ours,
        "baseline_raw_us": theirs.baseline,
    }
    found.notes = building.versions()
    for whose, finding in (("ours", ours), ("theirs", theirs)):
        found.samples |= {f"{whose} {name}": values for name, values in finding.samples.items()}
    return found


def _findings(seen: Mapping[str, Followed]) -> dict[str, Finding]:
    found = {}
    for event in _EVENTS:
        # An instance may have had its last call before it said that it leaves: of many zeros a median says little.
        middle, name = (statistics.fmean, "means") if event == "leave" else (statistics.median, "medians")
        bare = seen["hand"].ms[event]
        for rival, like in LIKE.items():
            theirs = seen[rival].ms[event]
            found[f"rivals.{event}.{rival}"] = finding = beside(seen[like].ms[event], theirs, middle=middle)
            finding.notes = name
            if rival in RIVALS:
                floor = beside(bare, theirs, middle=middle)
                finding.facts |= {"bare": floor.ratio, "bare_low": floor.low, "bare_high": floor.high}
                finding.notes += (
                    f"; a plain client by hand: {floor.ratio:.2f} ({floor.low:.2f} to {floor.high:.2f}) of theirs"
                )
    ours_failed = {event: sum(seen[kind].failed[event] for kind in OURS) for event in _EVENTS}
    calls = sum(seen[kind].calls for kind in OURS)
    failed = Finding(float(sum(ours_failed.values())), unit="calls")
    failed.facts = {"calls": calls, "failed_by_event": ours_failed}
    for rival in RIVALS:
        failed.facts |= {f"{rival}_failed_by_event": seen[rival].failed, f"{rival}_calls": seen[rival].calls}
    told = [building.versions(), f"of {calls:,} calls, {_by_event(ours_failed)}"]
    told += [f"{RIVALS[r]}: {_by_event(seen[r].failed)} of {seen[r].calls:,}" for r in RIVALS]
    failed.notes = "; ".join(told)
    return found | {"rivals.failed": failed}


def _by_event(failed: Mapping[str, int]) -> str:
    return f"{sum(failed.values())} ({', '.join(f'{event} {number}' for event, number in failed.items())})"
