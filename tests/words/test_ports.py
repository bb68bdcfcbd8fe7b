"""The ports: whoever stands in for the clock, for chance or for the store offers all that they promise."""

from __future__ import annotations

import pytest

from mesh.clock import Clock, Dice
from mesh.memory import MemoryStore
from mesh.store import Store
from mesh.wallclock import CLOCK, DICE


@pytest.mark.parametrize(
    ("port", "real"), [(Clock, CLOCK), (Dice, DICE), (Store, MemoryStore())], ids=["clock", "dice", "store"]
)
def test_the_real_ones_offer_all_that_the_port_promises(port: type[object], real: object) -> None:
    promised = {name for name in vars(port) if not name.startswith("_") and callable(getattr(port, name))}
    assert promised
    assert {name for name in promised if not callable(getattr(real, name, None))} == set()
