"""gRPC, gRPC-Web and HTTP/JSON through one port of a real Envoy."""

from __future__ import annotations

import struct
import time
import urllib.request

import grpc
import pytest

from support.entrances import ask
from support.front import SERVICE, Front
from support.grpcurl import Grpcurl
from users.v1 import users_pb2, users_pb2_grpc


def test_json_creates_and_gets_in_both_spellings_of_the_path(front: Front) -> None:
    made = ask(front.address, "POST", "/v1/users", {"id": "j1", "name": "Ada", "email": "a@x.example"})
    plain = ask(front.address, "POST", "/users", {"id": "j2", "name": "Bob", "email": "b@x.example"})

    assert made.status == 200
    assert made.json() == {"id": "j1", "name": "Ada", "email": "a@x.example"}
    assert plain.json()["id"] == "j2"
    assert ask(front.address, "GET", "/v1/users/j1").json() == made.json()
    assert ask(front.address, "GET", "/users?id=j2").json() == plain.json()


def test_json_speaks_lower_camel_case_and_takes_both(front: Front) -> None:
    wanted = {"id": "j3", "create_time": "2026-01-01T00:00:00Z", "updateTime": "2026-01-02T00:00:00Z"}

    got = ask(front.address, "POST", "/v1/users", wanted).json()

    assert got == {"id": "j3", "createTime": "2026-01-01T00:00:00Z", "updateTime": "2026-01-02T00:00:00Z"}


def test_grpc_passes_with_its_status(front: Front) -> None:
    with grpc.insecure_channel(front.address) as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        stub.CreateUser(users_pb2.CreateUserRequest(user=users_pb2.User(id="g1")), timeout=5)
        assert stub.GetUser(users_pb2.GetUserRequest(id="g1"), timeout=5).id == "g1"
        with pytest.raises(grpc.RpcError) as missing:
            stub.GetUser(users_pb2.GetUserRequest(id="nobody"), timeout=5)
        assert [w.user.id for w in stub.WatchUsers(users_pb2.WatchUsersRequest(), timeout=5)]

    assert missing.value.code() == grpc.StatusCode.NOT_FOUND
    assert missing.value.details() == "there is no such user"


def test_grpc_to_an_unknown_method_is_unimplemented(front: Front) -> None:
    with grpc.insecure_channel(front.address) as channel, pytest.raises(grpc.RpcError) as unknown:
        channel.unary_unary("/no.such.Service/Method")(b"", timeout=5)

    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert unknown.value.details() == "The mesh has no such method."


def test_grpc_web_is_answered_in_its_own_frames(front: Front) -> None:
    message = users_pb2.ListUsersRequest().SerializeToString()
    frame = b"\0" + struct.pack(">I", len(message)) + message
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    request = urllib.request.Request(f"http://{front.address}/{SERVICE}/ListUsers", frame, headers)

    with urllib.request.urlopen(request, timeout=5) as answer:
        body = answer.read()

    assert answer.headers["content-type"].startswith("application/grpc-web+proto")
    size = struct.unpack(">I", body[1:5])[0]
    users_pb2.ListUsersResponse.FromString(body[5 : 5 + size])
    assert b"grpc-status:0" in body[5 + size :]


def test_grpcurl_finds_the_services_of_the_mesh_by_reflection(front: Front) -> None:
    grpcurl = Grpcurl(front.address)

    assert SERVICE in grpcurl.ask("list").split()
    assert "rpc CreateUser" in grpcurl.ask("describe", SERVICE)
    assert grpcurl.call(f"{SERVICE}/CreateUser", {"user": {"id": "r1"}}) == {"id": "r1"}


@pytest.mark.parametrize("size", [100_000, 900_000])
def test_large_grpc_message_passes(size: int, front: Front) -> None:
    with grpc.insecure_channel(front.address) as channel:
        user = users_pb2.User(id="big", name="x" * size)
        request = users_pb2.CreateUserRequest(user=user, request_id="r")
        assert users_pb2_grpc.UserServiceStub(channel).CreateUser(request, timeout=5) == user


def test_forged_mark_is_taken_away_before_the_route_is_chosen(front: Front) -> None:
    with grpc.insecure_channel(front.address) as channel:
        request = users_pb2.CreateUserRequest(user=users_pb2.User(id="forged"))
        stub = users_pb2_grpc.UserServiceStub(channel)
        stub.CreateUser(request, timeout=5, metadata=[("x-mesh-repeatable", "forged")])

    assert "x-mesh-repeatable" not in front.tiny[0].servicer.metadata


def test_json_call_beyond_its_time_is_504(front: Front) -> None:
    begin = time.monotonic()
    answer = ask(front.address, "GET", "/v1/users/slow-8")
    taken = time.monotonic() - begin

    assert answer.status == 504
    assert answer.json()["code"] == 4  # DEADLINE_EXCEEDED, in Envoy's words or in the instance's
    assert answer.json()["message"]
    assert 4.5 < taken < 6


@pytest.mark.parametrize(("said", "seconds"), [("2500m", 2.5), ("3S", 3.0)])
def test_json_caller_may_name_a_shorter_time(said: str, seconds: float, front: Front) -> None:
    answer = ask(front.address, "GET", "/v1/users", headers={"grpc-timeout": said})

    left = front.tiny[0].servicer.left
    assert answer.status == 200
    assert left is not None
    assert 0 < left <= seconds


def test_grpc_deadline_of_the_caller_counts_over_the_methods(front: Front) -> None:
    with grpc.insecure_channel(front.address) as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        assert stub.GetUser(users_pb2.GetUserRequest(id="slow-5.5"), timeout=10).id == "slow-5.5"
        with pytest.raises(grpc.RpcError) as late:
            stub.GetUser(users_pb2.GetUserRequest(id="slow-8"))

    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_instances_are_told_the_time_that_is_left_and_no_marks_of_ours(front: Front) -> None:
    forged = {"x-mesh-repeatable": "1", "x-envoy-original-path": "/forged", "x-envoy-retry-on": "5xx"}
    ask(front.address, "GET", "/v1/users", headers=forged)

    told = front.tiny[0].servicer.metadata
    assert "x-mesh-repeatable" not in told
    assert "x-envoy-retry-on" not in told
    assert "x-envoy-original-path" not in told


def test_access_log_names_the_method_and_nothing_that_callers_choose(front: Front) -> None:
    ask(front.address, "GET", "/v1/users/secret-id")
    ask(front.address, "GET", "/v1/users/secret-id?request_id=secret")
    ask(front.address, "GET", "/nowhere/secret-id?email=secret@x.example")
    end = time.monotonic() + 5
    while not (
        any(line["rpc.method"] == f"/{SERVICE}/GetUser" for line in front.envoy.access_log())
        and (lines := [line for line in front.envoy.access_log() if line["http.response.status_code"] == 404])
    ):
        assert time.monotonic() < end, front.envoy.access_log()
        time.sleep(0.05)

    assert "secret" not in str(front.envoy.access_log())
    assert all(line["log.level"] == "info" for line in lines)
