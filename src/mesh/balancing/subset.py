"""Which instances a client connects to where there are hundreds: a subset of its own, by rendezvous hashing.

A thousand clients of five hundred instances would hold half a million connections, each watched and pinged. Each
client ranks all instances by a hash of its name and their address and takes the first few (gRFC A68 does the same).
Everybody's subset is another, so each instance has about the same number of clients; a client replaces only the
instance that left, and an instance that comes is taken up only by those in whose first few it ranks. No client needs to
know of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from heapq import nlargest

from mesh.instance import Instance

# Where the zone matters, one seat in four is kept for other zones: somewhere to go when one's own is in trouble.
_FAR_SHARE = 4


def subset(client: str, instances: Sequence[Instance], size: int, zone: str = "") -> list[Instance]:
    """Return the instances that `client` should connect to, at most `size`; 0 is all of them.

    zone: take three quarters of them from there, if it has so many.
    """
    if not 0 < size < len(instances):
        return list(instances)
    if not zone:
        return _first(client, instances, size)
    near = [i for i in instances if i.zone == zone]
    far = [i for i in instances if i.zone != zone]
    from_near = min(len(near), max(size - size // _FAR_SHARE, size - len(far)))
    return _first(client, near, from_near) + _first(client, far, size - from_near)


def _first(client: str, instances: Iterable[Instance], size: int) -> list[Instance]:
    def rank(instance: Instance) -> tuple[bytes, str]:
        address = str(instance.endpoint)
        return blake2b(f"{client}/{address}".encode(), digest_size=8).digest(), address

    return nlargest(size, instances, key=rank)
