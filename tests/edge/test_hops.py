"""Callers outside say nothing about how the mesh treats their calls: what hops tell each other stops at the edge."""

from __future__ import annotations

import grpc

from mesh.resilience.hops import ATTEMPTS_LEFT, PRIORITY
from support.front import Front
from users.v1 import users_pb2, users_pb2_grpc


def test_what_hops_tell_each_other_is_taken_from_callers_outside(front: Front) -> None:
    with grpc.insecure_channel(front.address) as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        metadata = ((ATTEMPTS_LEFT, "4"), (PRIORITY, "critical"), ("kept", "yes"))
        stub.ListUsers(users_pb2.ListUsersRequest(), timeout=5, metadata=metadata)

    arrived = front.tiny[0].servicer.metadata
    assert arrived["kept"] == "yes"
    assert not {ATTEMPTS_LEFT, PRIORITY} & set(arrived)
