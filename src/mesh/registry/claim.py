"""Whose a key is: the decision a registrar takes when it finds one under its own instance id, without waiting."""

from __future__ import annotations

import enum
from collections.abc import Collection

from mesh.errors import RecordError
from mesh.instance import Instance
from mesh.registry.record import decode
from mesh.store import Entry


class Claim(enum.Enum):
    """What to do about the key."""

    CREATE = "nobody has it: put it if it is still absent"
    KEEP = "it is ours and as it should be"
    REPLACE = "it is ours, or nobody's in earnest: write what should be there"
    CONTEST = "somebody else has it, at another address"


def decide(
    found: Entry | None, value: bytes, instance: Instance, lease: int, own: Collection[int], prefix: str
) -> Claim:
    """Decide about a key.

    found: what is there.
    value: what should be there, the record of `instance`, under `lease`.
    own: all leases that this process has held.
    """
    # 1. Never registered, expired, deleted or revoked.
    if found is None:
        return Claim.CREATE
    # 2. Ours, under this lease or one that we lost.
    if found.lease in own:
        return Claim.KEEP if found.lease == lease and found.value == value else Claim.REPLACE
    # 3. Poisoned by somebody: no instance would write that.
    try:
        other = decode(found.key, found.value, prefix)
    except RecordError:
        return Claim.REPLACE
    # 4. Our own former life: two processes cannot listen on one address (`grpc.so_reuseport` is off).
    if other.endpoint == instance.endpoint:
        return Claim.REPLACE
    # 5. Another process, living or dead.
    return Claim.CONTEST
