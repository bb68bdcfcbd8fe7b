"""Where a watch stands and what an answer of etcd means for it: the decisions, without waiting.

Rules:
- We resume after the last *event*, never after a revision told in a sign of life: up to etcd 3.5.7 those could run
  ahead of events not yet sent (etcd-io/etcd#15220). The cost is a listing more, where that event was compacted away.
- We ask from the last event itself on, not from the revision after it, and leave out what was told: since etcd 3.5.8 a
  watch that begins in the future gets no signs of life (progressIfSync in its watchable_store.go), and a quiet watch
  would look like a hung member. The cost is up to 0.1 s, once, until etcd counts such a watch as synchronised.
- A member whose revision or election is older than what we have seen is behind the others, or has lost its data. All
  members together know: if a linearizable read is as old, what we know is wrong, and the prefix is listed again.
- Left out: fragments and previous values; nobody asks for them.
"""

from __future__ import annotations

import itertools

from grpcmesh.etcd.v3 import etcd_pb2 as pb
from mesh.errors import Compacted, StoreError, StoreUnavailable
from mesh.etcd.wire import entry_of, key_of, watch_request
from mesh.store import Changed, Entry


class WatchRefused(StoreError):
    """etcd ended a watch for want of permission. A fresh token may help, once; the member is well."""


class Cursor:
    """One watch over all its streams. `told` is the revision up to which everything was told."""

    def __init__(self, prefix: str, after: int) -> None:
        self._prefix = prefix
        self.told = after
        self._term = 0

    def __repr__(self) -> str:
        return f"Cursor({self._prefix!r}, told={self.told}, term={self._term})"

    def request(self) -> pb.WatchRequest:
        """Return what begins or resumes the watch."""
        return watch_request(self._prefix, max(1, self.told))

    def take(self, answer: pb.WatchResponse) -> list[Changed]:
        """Return what an answer tells, one item for each revision: a goodbye just before an end is not left out.

        Without events it is a sign of life, told as an item without changes.

        Raises Compacted if everything must be read again, WatchRefused or StoreUnavailable if the watch is over.
        """
        if answer.canceled:
            raise self._reason(answer)
        news = [event for event in answer.events if event.kv.mod_revision > self.told]
        if not news:
            return [Changed({}, self.told)]
        told = []
        for revision, events in itertools.groupby(news, key=lambda event: event.kv.mod_revision):
            changes: dict[str, Entry | None] = {
                key_of(event.kv): None if event.deleted else entry_of(event.kv) for event in events
            }
            told.append(Changed(changes, revision))
        self.told = told[-1].revision
        return told

    def is_ahead_of(self, header: pb.ResponseHeader) -> bool:
        """Whether we have seen more than who says this; then `confirm` what all members say."""
        self._term = max(self._term, header.raft_term)
        return header.revision < self.told or header.raft_term < self._term

    def confirm(self, header: pb.ResponseHeader) -> None:
        """Take the header of a linearizable read. Raises Compacted if the history that we saw is no more."""
        if self.is_ahead_of(header):
            raise Compacted(header.revision)

    def _reason(self, answer: pb.WatchResponse) -> StoreError:
        if answer.compact_revision:
            return Compacted(answer.compact_revision)
        if "permission denied" in answer.cancel_reason or "auth" in answer.cancel_reason:
            return WatchRefused(answer.cancel_reason)
        return StoreUnavailable(f"etcd ended the watch: {answer.cancel_reason or 'no reason given'}")
