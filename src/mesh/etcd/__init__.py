"""etcd, spoken directly over gRPC: the real store of registrations.

`store` is the face; `session` and `members` reach whichever member answers; `leases` and `watching` wait, `heartbeat`
and `cursor` decide; `wire` builds requests and `border` translates errors.
"""

from mesh.etcd.store import EtcdStore

__all__ = ["EtcdStore"]
