"""What many instances cost: a pick among them, and the news that one of them has changed."""

from __future__ import annotations

from bench import openloop
from bench.measure import Finding, alone, compare
from bench.row import Spec, measures
from bench.site import Site
from mesh.policy import Balancer
from support.etcd import Etcd

_INSTANCES = 10_000
_CHANGES = 25


def _picks(site: Site, kind: Balancer, *, record: bool = False) -> Finding:
    job = {"balancer": kind.value, "record": record}
    return site.compare("bench.arms.picking:picks", job, calls=30_000).compared("many")


@measures(Spec("pick.round-robin", "a turn over 1,000, breaker asked", "over 3", goal=1.02, quick=True))
def round_robin(site: Site) -> Finding:
    """Turns: the default."""
    return _picks(site, Balancer.ROUND_ROBIN)


@measures(Spec("pick.recorded", "the same, and the breaker told how the call went", "over 3"))
def recorded(site: Site) -> Finding:
    """What an attempt costs beside its call."""
    return _picks(site, Balancer.ROUND_ROBIN, record=True)


@measures(Spec("pick.least-loaded", "the less loaded of two among 1,000", "among 3", goal=1.02))
def least_loaded(site: Site) -> Finding:
    """Two choices, by Peak-EWMA."""
    return _picks(site, Balancer.LEAST_LOADED)


@measures(Spec("pick.weighted", "a weighted turn over 1,000", "over 3", goal=1.02))
def weighted(site: Site) -> Finding:
    """Turns by weight."""
    return _picks(site, Balancer.WEIGHTED)


@measures(Spec("pick.hash", "a key's place on a ring of 1,000", "of 3", goal=1.02))
def hashed(site: Site) -> Finding:
    """A consistent hash: a search in a part of a sorted ring."""
    return _picks(site, Balancer.CONSISTENT_HASH)


@measures(
    Spec(
        "pick.slow-host",
        "calls that meet one of three instances after it begins to take half a second: KIND_LEAST_LOADED",
        "in turns",
    )
)
def slow_host(site: Site) -> Finding:
    """What a balancer buys, at 200 calls a second that wait for no answer."""
    seconds = 8 * min(1.0, site.scale)
    shares: dict[Balancer, list[float]] = {}
    facts = {}
    for number in range(5 if site.scale == 1.0 else 1):
        for kind in (Balancer.ROUND_ROBIN, Balancer.LEAST_LOADED):
            job = {"balancer": kind.value, "seconds": seconds, "rate": 200}
            told = site.child({"call": "bench.arms.picking:slow_host", "job": job}, name=f"{kind.value}-{number}")
            shares.setdefault(kind, []).append(told["met_percent"])
            facts[f"p99_ms_{kind.value.lower()}"] = told["p99_ms"]
    found = compare(shares[Balancer.LEAST_LOADED], shares[Balancer.ROUND_ROBIN], unit="% of calls")
    found.facts = facts | {"tool": openloop.TOOL}
    return found


@measures(Spec("pick.change", "a resolver that follows 10,000 instances in etcd, CPU of one change", goal=1.0))
def change(site: Site) -> Finding:
    """One instance of ten thousand changes."""
    size = max(50, round(_INSTANCES * min(1.0, site.scale)))
    with Etcd(site.folder / "etcd") as etcd:
        args = (etcd.endpoint, str(size))
        writer = site.python("-m", "bench.arms.picking", "write", *args, name="writer")
        writer.line()
        follower = site.python("-m", "bench.arms.picking", "follow", *args, name="follower")
        follower.line()
        spent = []
        for number in range(site.rounds + 1):
            before = follower.cpu_ns()
            follower.ask(writer.ask(f"{_CHANGES}"))
            if number:
                spent.append((follower.cpu_ns() - before) / _CHANGES / 1e6)
        found = alone(spent, unit="ms CPU")
        found.facts["memory_mb"] = follower.memory_mb()
        site.sweep()
    return found
