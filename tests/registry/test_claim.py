"""Whose a key is."""

from __future__ import annotations

import pytest

from mesh.instance import Endpoint, Instance, State
from mesh.registry import record
from mesh.registry.claim import Claim, decide
from mesh.store import Entry

MINE = Instance("users.v1.UserService", "i1", Endpoint("127.0.0.1", 5000))
KEY = record.instance_key("mesh", MINE)
OTHER = Instance("users.v1.UserService", "i1", Endpoint("127.0.0.2", 5000))
NOW, BEFORE, FOREIGN = 7, 5, 99


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, Claim.CREATE),
        (Entry(KEY, record.encode(MINE), NOW), Claim.KEEP),
        (Entry(KEY, record.encode(MINE.with_state(State.DRAINING)), NOW), Claim.REPLACE),
        (Entry(KEY, record.encode(MINE), BEFORE), Claim.REPLACE),
        (Entry(KEY, record.encode(OTHER), BEFORE), Claim.REPLACE),
        (Entry(KEY, b"poison", FOREIGN), Claim.REPLACE),
        (Entry(KEY, b"poison", 0), Claim.REPLACE),
        (Entry(KEY, record.encode(MINE), FOREIGN), Claim.REPLACE),
        (Entry(KEY, record.encode(OTHER), FOREIGN), Claim.CONTEST),
        (Entry(KEY, record.encode(OTHER), 0), Claim.CONTEST),
    ],
    ids=[
        "nobody's",
        "ours as it should be",
        "ours in another state",
        "ours under a lost lease",
        "overwritten under a lease of ours",
        "poisoned under a lease",
        "poisoned for ever",
        "our former life",
        "another process",
        "a record by hand",
    ],
)
def test_what_is_found_decides(found: Entry | None, expected: Claim) -> None:
    assert decide(found, record.encode(MINE), MINE, NOW, {BEFORE, NOW}, "mesh") is expected
