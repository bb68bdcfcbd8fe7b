"""A balancer, the breakers and the loads together: rules of the balance, without a network."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from grpcmesh.v1 import load_pb2
from mesh.balancing.reported import BLACKOUT
from mesh.client.balance import LOAD_REPORT, Balance, key_of
from mesh.client.roster import UNCOUNTED, Slot
from mesh.instance import Endpoint, Instance
from mesh.policy import Balancer, BalancerPolicy, BreakerPolicy, MethodPolicy
from mesh.resilience.breaker import Breaker
from mesh.resilience.outcome import Outcome
from users.v1 import users_pb2

METHOD: Any = SimpleNamespace(policy=MethodPolicy(), answers_once=True)
KINDS = [Balancer.LEAST_LOADED, Balancer.WEIGHTED, Balancer.CONSISTENT_HASH]


def slots_of(size: int) -> list[Slot]:
    policy = BreakerPolicy(consecutive_failures=1, open_for=30.0, half_open_permits=1)
    found = [Slot(Instance("t.Test", f"i{n}", Endpoint("127.0.0.1", 5000 + n)), Breaker(policy)) for n in range(size)]
    for slot in found:
        slot.connected = True
    return found


def balance_of(kind: Balancer, slots: Sequence[Slot], **more: Any) -> Balance:
    balance = Balance.of(BalancerPolicy(kind, **more), "", random.Random(5))
    assert balance is not None
    balance.arrange(slots, 0.0)
    return balance


def eject(balance: Balance, slots: Sequence[Slot], *which: int) -> None:
    for number in which:
        permit = slots[number].breaker.acquire(0.0)
        assert permit is not None
        permit.record(Outcome.FAILURE, 0.0)
    balance.arrange(slots, 0.0)


def pick(balance: Balance, now: float = 1.0, tried: Sequence[Slot] = ()) -> tuple[Slot, Any]:
    picked = balance.pick(now, tried, METHOD, None, None)
    assert picked is not None
    return picked


@pytest.mark.parametrize("kind", KINDS)
def test_an_ejected_instance_is_passed_over_and_probed_when_its_time_has_come(kind: Balancer) -> None:
    slots = slots_of(3)
    balance = balance_of(kind, slots)
    eject(balance, slots, 1)
    for _ in range(60):
        slot, permit = pick(balance)
        assert slot is not slots[1]
        permit.record(Outcome.SUCCESS, 1.01)
    counts: Counter[str] = Counter()
    for number in range(60):
        slot, permit = pick(balance, 100.0 + number)
        counts[slot.name] += 1
        permit.record(Outcome.SUCCESS, 100.01 + number)
        balance.arrange(slots, 100.01 + number)
    assert counts[slots[1].name] > 5


@pytest.mark.parametrize("kind", KINDS)
def test_with_more_than_half_ejected_ejection_is_ignored_and_proves_nothing(kind: Balancer) -> None:
    slots = slots_of(3)
    balance = balance_of(kind, slots)
    eject(balance, slots, 0, 1)
    counts: Counter[str] = Counter()
    for _ in range(90):
        slot, permit = pick(balance)
        counts[slot.name] += 1
        permit.record(Outcome.SUCCESS, 1.001)
    assert len(counts) == 3
    assert not slots[0].breaker.is_closed
    assert all(slot.candidate is not None and slot.candidate.load.in_flight == 0 for slot in slots)


@pytest.mark.parametrize("kind", KINDS)
def test_tried_ones_come_last_and_before_those_that_are_ejected(kind: Balancer) -> None:
    slots = slots_of(2)
    balance = balance_of(kind, slots)
    assert pick(balance, tried=slots[:1])[0] is slots[1]
    assert pick(balance, tried=slots)[0] in slots
    eject(balance, slots, 1)
    slot, permit = pick(balance, tried=slots[:1])
    assert slot is slots[0]
    assert permit is not UNCOUNTED


def test_where_all_that_is_left_is_ejected_the_call_is_made_all_the_same() -> None:
    slots = slots_of(4)
    balance = balance_of(Balancer.WEIGHTED, slots)
    eject(balance, slots, 0, 1)
    # Two of four are no panic; the other two are half open, and their only probe is out.
    for slot in slots[2:]:
        slot.breaker.acquire(0.0)
    balance.arrange(slots[:2], 0.0)
    balance._panic = False
    slot, permit = pick(balance)
    assert slot in slots[:2]
    assert permit is UNCOUNTED


def test_nothing_to_choose_from_gives_none() -> None:
    balance = balance_of(Balancer.LEAST_LOADED, [])
    assert balance.pick(0.0, (), METHOD, None, None) is None
    assert "TwoChoices" in repr(balance)


class Ended:
    """An attempt that has ended with these trailing entries."""

    def __init__(self, *entries: tuple[str, bytes]) -> None:
        self._entries = entries

    async def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._entries

    def add_done_callback(self, callback: Any) -> None:
        callback(self)


def test_reports_are_read_nonsense_is_ignored_and_a_new_connection_begins_anew() -> None:
    slots = slots_of(2)
    balance = balance_of(Balancer.WEIGHTED, slots, load_reports=True)
    report = load_pb2.OrcaLoadReport(cpu_utilization=0.5, rps_fractional=100).SerializeToString()
    reported = slots[0].candidate.reported  # type: ignore[union-attr]  # arranged above
    for entries in ((), ((LOAD_REPORT, b"\xff"),), (("other", report),)):
        balance.launched(slots[0], Ended(*entries), lambda: 1.0)
    assert reported.at(1.0 + BLACKOUT) == 0.0
    balance.launched(slots[0], Ended((LOAD_REPORT, report)), lambda: 1.0)
    assert reported.at(1.0 + BLACKOUT) == 200.0
    balance.launched(slots_of(1)[0], Ended((LOAD_REPORT, report)), lambda: 1.0)
    balance.arrange(slots[1:], 20.0)
    balance.arrange(slots, 21.0)
    assert reported.at(22.0) == 0.0


@pytest.mark.parametrize(
    ("request_", "metadata", "key"),
    [
        (users_pb2.GetUserRequest(id="ada"), None, b"ada"),
        (users_pb2.GetUserRequest(), [("x-tenant", "acme")], b"acme"),
        (users_pb2.GetUserRequest(), [("x-tenant", b"acme")], b"acme"),
        (users_pb2.GetUserRequest(), [("x-other", "acme")], None),
        (b"bytes", None, None),
        (iter([]), [("x-tenant", "acme")], b"acme"),
        (SimpleNamespace(id=7), None, b"7"),
        (SimpleNamespace(id=users_pb2.User()), None, None),
    ],
)
def test_the_key_is_the_field_or_else_the_metadata(request_: object, metadata: Any, key: bytes | None) -> None:
    policy = BalancerPolicy(Balancer.CONSISTENT_HASH, hash_field="id", hash_metadata="x-tenant")
    assert key_of(policy, request_, metadata) == key
