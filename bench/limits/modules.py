"""What our own modules take to load, beside all that a stub needs."""

from __future__ import annotations

import json

from bench.limits import Figures, limit, share
from bench.measure import alone
from bench.site import Site

_ROUNDS = 24
_CODE = """
import json, sys, time
import grpc.aio
from users.v1 import users_pb2, users_pb2_grpc
needed, before = time.process_time_ns(), set(sys.modules)
import mesh
mesh.connect("users.v1.UserService", endpoints=["127.0.0.1:1"])
own = time.process_time_ns() - needed
ours = [name for name in set(sys.modules) - before if name.partition(".")[0] in ("mesh", "grpcmesh")]
print(json.dumps([needed / 1e6, own / 1e6, len(ours)]), flush=True)
"""


@limit("modules", "startup.first-call: our modules beside all that a stub needs, loaded in a fresh process")
def modules(site: Site) -> Figures:
    """CPU of fresh processes."""
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(site.folder / "compiled")}
    told = []
    for _ in range(share(site, _ROUNDS) + 1):
        process = site.python("-c", _CODE, name="modules", env=env)
        told.append(json.loads(process.line()))
        site.stop(process)
    needed, own, count = zip(*told[1:], strict=True)  # the first one compiles
    return {
        "Python, grpc.aio and a generated stub": alone(needed, unit="ms CPU"),
        "then our own, and a channel made": alone(own, unit="ms CPU"),
        "our own": alone(count, unit="modules"),
    }
