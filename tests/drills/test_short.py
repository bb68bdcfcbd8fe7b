"""A short set of drills for every change, those that tests/stack/test_drills.py has not: the rest is `make drills`."""

from __future__ import annotations

import pytest

from drills.drill import REGISTRY, run_now

pytestmark = [pytest.mark.drill, pytest.mark.alone]


@pytest.mark.parametrize("name", ["key-deleted", "poisoned-record", "compaction", "prefix-deleted"])
def test_drill_is_met_on_both_clients(name: str) -> None:
    rows = run_now(REGISTRY[name], roads=("mesh", "blocking"), short=True, tell=print)
    assert [(row["road"], row["missed"]) for row in rows] == [("mesh", []), ("blocking", [])]
