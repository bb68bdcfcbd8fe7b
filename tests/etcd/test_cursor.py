"""What an answer to a watch means."""

from __future__ import annotations

import pytest

from grpcmesh.etcd.v3 import etcd_pb2 as pb
from mesh.errors import Compacted, StoreUnavailable
from mesh.etcd.cursor import Cursor, WatchRefused


def answer(revision: int, *events: tuple[str, int, bytes | None], term: int = 2, **fields: object) -> pb.WatchResponse:
    return pb.WatchResponse(
        header=pb.ResponseHeader(revision=revision, raft_term=term),
        events=[
            pb.Event(deleted=value is None, kv=pb.KeyValue(key=key.encode(), mod_revision=at, value=value or b""))
            for key, at, value in events
        ],
        **fields,  # type: ignore[arg-type]  # any field of the message
    )


def start(cursor: Cursor) -> int:
    return cursor.request().create_request.start_revision


def test_it_asks_from_the_last_event_on_and_leaves_out_what_was_told() -> None:
    cursor = Cursor("k/", 10)
    assert start(cursor) == 10
    cursor.take(answer(20, ("k/a", 12, b"1"), ("k/b", 15, None)))
    assert start(cursor) == 15
    (changed,) = cursor.take(answer(20, ("k/b", 15, None), ("k/b", 16, b"2")))
    assert (changed.revision, list(changed.changes)) == (16, ["k/b"])


def test_the_very_beginning_is_no_wish_for_now() -> None:
    assert start(Cursor("k/", 0)) == 1


def test_a_sign_of_life_moves_nothing() -> None:
    cursor = Cursor("k/", 10)
    (changed,) = cursor.take(answer(99))
    assert not changed.changes
    assert start(cursor) == 10


def test_each_revision_is_told_by_itself() -> None:
    told = Cursor("k/", 0).take(answer(9, ("k/a", 5, b"1"), ("k/b", 5, b"2"), ("k/a", 6, None)))
    assert [(c.revision, sorted(c.changes)) for c in told] == [(5, ["k/a", "k/b"]), (6, ["k/a"])]
    assert told[1].changes == {"k/a": None}


def test_a_compaction_is_told_with_its_revision() -> None:
    with pytest.raises(Compacted) as caught:
        Cursor("k/", 1).take(answer(50, canceled=True, compact_revision=40))
    assert caught.value.revision == 40


@pytest.mark.parametrize("reason", ["etcdserver: permission denied", "etcdserver: invalid auth token"])
def test_a_refusal_is_told_apart_from_a_break(reason: str) -> None:
    with pytest.raises(WatchRefused):
        Cursor("k/", 1).take(answer(1, canceled=True, cancel_reason=reason))
    with pytest.raises(StoreUnavailable):
        Cursor("k/", 1).take(answer(1, canceled=True, cancel_reason="mvcc: something else"))


def test_a_member_behind_is_no_lost_history() -> None:
    cursor = Cursor("k/", 10)
    assert cursor.is_ahead_of(answer(7).header)
    cursor.confirm(answer(12).header)  # all of them together are not behind


def test_a_cluster_behind_has_lost_history() -> None:
    cursor = Cursor("k/", 10)
    with pytest.raises(Compacted):
        cursor.confirm(answer(7).header)


def test_an_older_election_is_a_lost_history_however_high_its_revision() -> None:
    cursor = Cursor("k/", 10)
    assert not cursor.is_ahead_of(answer(12, term=5).header)
    assert cursor.is_ahead_of(answer(99, term=2).header)
    with pytest.raises(Compacted):
        cursor.confirm(answer(99, term=2).header)
