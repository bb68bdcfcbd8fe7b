"""The server's stack (deadlines, refusals, limits, counting) beside a plain grpc.aio server with the same servicer."""

from __future__ import annotations

from bench.measure import Finding, Samples
from bench.row import Spec, measures
from bench.site import Process, Site


def server(name: str, started: tuple[Process, str]) -> tuple[str, str, int]:
    """Return a server as the job of `bench.arms.driven` names it."""
    process, address = started
    return name, address, process.pid


_LIMIT = (
    "It is our account of each call: with its handlers unwrapped the same mesh server costs 0.97 (± 0.03) of a plain "
    "one, and the account is 29 thousand instructions on top of 496 thousand (callgrind, one call at a time), 6 % of a "
    "call. It takes 1.3 µs in a loop of its own and 11 (8 to 14) in a server at work, where no code is warm: 2.1 µs of "
    "other Python in a handler made 7 (4 to 11) where each step had code of its own, and 2 (-3 to 4) where it was one "
    "step again and again. Two plain servers differ by up to a twentieth for as long as they live: in one process, in "
    "turns, ours costs 1.04 (1.02 to 1.07) of a plain one."
)
_PAIRS = 12
_ROUNDS = 12
"""Of a pair: few, because a round more tells of this pair only."""
# `noise`: runs of six pairs and six rounds, drawn from what bench/results/ has of three sessions of 2026-11-22 (18
# pairs, whose medians differ by a deviation of 0.07; of users.get 12, by 0.055), beside runs of twelve and twelve: 39
# of 40 are not worse than that.


@measures(
    Spec(
        "server.unary",
        "a mesh server, 50 calls in flight",
        "a plain grpc.aio server with the same servicer",
        goal=1.05,
        quick=True,
        noise=0.11,
        limit=_LIMIT,
    )
)
def unary(site: Site) -> Finding:
    """CPU of the server's process."""
    return driven(site, "plain", "mesh")


def driven(site: Site, baseline: str, ours: str, *args: str) -> Finding:
    """Compare the CPU of two kinds of servers, fresh ones several times: luck with memory lasts for a server's life.

    Of two plain servers one costs between 0.95 and 1.05 of the other, as long as both live: so it is pairs that count.
    """
    whole = Samples()
    for _ in range(_PAIRS // (2 if site.quick else 1) if site.scale == 1.0 else 1):
        servers = [server("baseline", site.serve(baseline)), server("ours", site.serve(ours, *args))]
        job = {"servers": servers}
        whole.extend(site.compare("bench.arms.driven:get_user", job, calls=400, rounds=_ROUNDS, processes=1))
        site.sweep()
    return whole.compared("ours")
