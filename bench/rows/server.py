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
    "It is our account of each call, of which no part stands out. In one process, in turns, ours costs 1.05 (1.04 to "
    "1.06) of a plain one, and with its handlers unwrapped 0.98 (0.98 to 0.99; `python -m bench.limits account`). The "
    "account is 18 thousand instructions on top of 494 (`python -m bench.limits instructions`)."
)
# A full run's, a quick one's.
_PAIRS = (12, 9)
_ROUNDS = 24
"""Of a pair; a quick run has a third of them."""


@measures(
    Spec(
        "server.unary",
        "a mesh server, 50 calls in flight",
        "a plain grpc.aio server with the same servicer",
        goal=1.05,
        quick=True,
        limit=_LIMIT,
    )
)
def unary(site: Site) -> Finding:
    """CPU of the server's process."""
    return driven(site, "plain", "mesh")


def driven(site: Site, baseline: str, ours: str, *args: str) -> Finding:
    """Compare the CPU of two kinds of servers, fresh ones several times: luck with memory lasts for a server's life.

    Pairs differ by 0.011 (the deviation of twelve pairs' medians, 2026-11-23) for as long as both live.
    """
    whole = Samples()
    for _ in range(_PAIRS[site.quick] if site.scale == 1.0 else 1):
        servers = [server("baseline", site.serve(baseline)), server("ours", site.serve(ours, *args))]
        job = {"servers": servers}
        whole.extend(
            site.compare("bench.arms.driven:get_user", job, calls=200, rounds=_ROUNDS, processes=1, cores="apart")
        )
        site.sweep()
    return whole.compared("ours")
