"""A short set of drills for every change, those that tests/stack/test_drills.py has not: the rest is `make drills`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drills.drill import REGISTRY, run_now

pytestmark = [pytest.mark.drill, pytest.mark.alone]

# Calls a second and road: what is tried here needs few, and a slow machine is not to be what fails.
RATE = 20.0


@pytest.mark.parametrize("name", ["compaction", "key-deleted", "poisoned-record", "prefix-deleted"])
def test_drill_is_met_on_both_clients(name: str) -> None:
    fault = REGISTRY[name]
    fault = replace(fault, setup=replace(fault.setup, rate=RATE))
    rows = run_now(fault, roads=("mesh", "blocking"), short=True, tell=print)
    assert [(row["road"], row["missed"]) for row in rows] == [("mesh", []), ("blocking", [])]
