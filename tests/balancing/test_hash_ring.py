"""One key, one endpoint; and as little as can be moves when endpoints come and go."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.balancing.hash_ring import POINTS, HashRing, _points_of, place
from support.candidates import candidates, even

KEYS = [f"user-{n}".encode() for n in range(2000)]


def owners(known, tried=()) -> dict[bytes, int]:
    ring: HashRing[int] = HashRing()
    ring.replace(known, 0.0)
    return {key: ring.pick(0.0, 0.0, tried, key).item for key in KEYS}


def test_a_place_is_the_same_in_every_process_and_release() -> None:
    assert place(b"user-1") == 0x9AAC5A8621EAE188
    assert owners(even(3)) == owners(list(reversed(even(3))))


@settings(max_examples=20)
@given(st.integers(1, 12), st.data())
def test_only_the_keys_of_the_one_that_left_move(size: int, data: st.DataObject) -> None:
    known = even(size + 1)
    left = data.draw(st.integers(0, size))
    before, after = owners(known), owners([c for c in known if c.item != left])
    assert all(after[key] == owner for key, owner in before.items() if owner != left)
    assert left not in after.values()


@settings(max_examples=20)
@given(st.integers(1, 12))
def test_a_newcomer_takes_about_its_share_and_nobody_else_gains(size: int) -> None:
    before, after = owners(even(size)), owners(even(size + 1))
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} <= {size}
    assert len(moved) < 1.6 * len(KEYS) / (size + 1)


def test_keys_of_one_that_cannot_be_called_go_to_all_the_others_and_back() -> None:
    known = even(6)
    before, meanwhile = owners(known), owners(known, tried=known[:1])
    assert all(meanwhile[key] == owner for key, owner in before.items() if owner)
    heirs = Counter(meanwhile[key] for key, owner in before.items() if not owner)
    assert set(heirs) == {1, 2, 3, 4, 5}
    assert meanwhile == owners(known[1:])


def test_ten_endpoints_own_about_a_tenth_each() -> None:
    counts = Counter(owners(even(10)).values())
    assert max(counts.values()) < 1.35 * len(KEYS) / 10
    assert min(counts.values()) > 0.65 * len(KEYS) / 10


def test_weights_are_shares_of_the_keys() -> None:
    counts = Counter(owners(candidates([1, 2, 4])).values())
    assert 1.4 < counts[1] / counts[0] < 2.8
    assert 1.5 < counts[2] / counts[1] < 2.6


def test_a_common_factor_of_all_weights_moves_no_key() -> None:
    assert owners(candidates([1, 2, 3])) == owners(candidates([100, 200, 300]))


@settings(max_examples=20)
@given(st.integers(1, 60), st.lists(st.binary(max_size=12), max_size=50))
def test_the_owner_of_a_key_is_that_of_the_next_point(size: int, keys: list[bytes]) -> None:
    """Held against a search in all of the ring: the tables of its parts change nothing."""
    ring: HashRing[int] = HashRing()
    known = even(size)
    ring.replace(known, 0.0)
    points = sorted((p, c.item) for c in known for p in _points_of(c.id, POINTS))
    for key in keys:
        after = [owner for point, owner in points if point >= place(key)]
        assert ring.pick(0.0, 0.0, (), key).item == (after[0] if after else points[0][1])
    for draw in (0.0, 1.0 - 2**-53):
        assert ring.pick(0.0, draw) is not None


def test_calls_without_a_key_go_anywhere() -> None:
    ring: HashRing[int] = HashRing()
    ring.replace(even(5), 0.0)
    dice = random.Random(1)
    counts = Counter(ring.pick(0.0, dice.random()).item for _ in range(2000))
    assert min(counts.values()) > 200


@given(st.binary(max_size=40))
def test_any_bytes_are_a_key(key: bytes) -> None:
    ring: HashRing[int] = HashRing()
    ring.replace(even(3), 0.0)
    assert ring.pick(0.0, 0.0, (), key) is ring.pick(9.0, 0.9, (), key)
