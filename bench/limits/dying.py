"""What becomes of the attempts at an instance between kill -9 and the end of its connections, when nobody is told: only
who counts the calls under way can guess. It is looked at by least loaded, with hedging and without, beside go-zero.
"""

from __future__ import annotations

import statistics
import time

from bench.limits import Figures, limit, share
from bench.rivals import SERVICE, building
from bench.rivals.arena import Rival, Spare, beside, etcd_of, wait
from bench.site import Site
from mesh.registry.record import policy_key

_EPISODES, _KILLS = 14, 3
_RATE = 1000.0
_SETTLE, _FOLLOW = 0.2, 0.15
_BEFORE, _AFTER = 0.05, 0.003
"""Seconds that are looked at: in the second its connections still stood, mostly."""
_UNHEDGED = '{"hedging": {"maxAttempts": 1}}'
_CALLERS = {"least": "KIND_LEAST_LOADED", "unhedged": "the same with hedging off"}


@limit("dying", "rivals.kill.zero: whom attempts go to before kill -9 and in the 3 ms after it, beside go-zero's")
def dying(site: Site) -> Figures:
    """Like the row, in turns. Needs Go."""
    program = str(building.build())
    with etcd_of(site) as etcd:
        etcd.ctl("put", policy_key("bench/unhedged", SERVICE), _UNHEDGED)
        bases = [Spare(site).address]
        rivals = {
            name: Rival(site, kind, etcd.endpoint, program=program, bases=bases, name=name)
            for name, kind in {"least": "least", "unhedged": "least", "zero": "zero"}.items()
        }
        before: dict[str, list[float]] = {name: [] for name in rivals}
        after: dict[str, list[float]] = {name: [] for name in rivals}
        for number in range(share(site, _EPISODES)):
            for name in list(rivals)[number % 3 :] + list(rivals)[: number % 3]:
                _kill(site, rivals[name], before[name], after[name])
        for rival in rivals.values():
            rival.stop(site)
    found = {}
    for name, text in _CALLERS.items():
        found[f"{text}: attempts at it in 3 ms"] = beside(after[name], after["zero"], middle=statistics.fmean)
        found[f"{text}: of all attempts before"] = beside(before[name], before["zero"], middle=statistics.fmean)
    for finding, unit in zip(found.values(), ("attempts", "%") * 2, strict=True):
        finding.unit = unit
    return found


def _kill(site: Site, rival: Rival, before: list[float], after: list[float]) -> None:
    """Kill instances one after the other; add the share of attempts that each had before, and how many after."""
    spares = [Spare(site) for _ in range(_KILLS)]
    addresses = [spare.address for spare in spares]  # all serve now, and rest
    ends: list[float] = []

    def events() -> None:
        wait(_SETTLE)
        for spare in spares:
            rival.registry.add(spare.address)
            wait(_FOLLOW)
            ends.append(time.time())
            spare.kill()
            wait(_FOLLOW)
            rival.registry.remove(spare.address)

    attempts = rival.under_load(_RATE, events).attempts
    for spare, address, end in zip(spares, addresses, ends, strict=True):
        spare.stop()
        ours = [name == address for at, name in attempts if end - _BEFORE <= at < end]
        before.append(100 * sum(ours) / max(1, len(ours)))
        after.append(sum(name == address for at, name in attempts if end <= at < end + _AFTER))
