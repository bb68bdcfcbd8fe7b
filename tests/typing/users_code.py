"""What users write, as mypy --strict reads it: no cast, no ignore. `make types` checks this file; nobody runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

import grpc

import mesh
from mesh import blocking
from users.v1 import users_pb2, users_pb2_grpc

if TYPE_CHECKING:
    from users.v1.users_pb2_grpc import UserServiceAsyncStub


async def calls() -> None:
    async with mesh.connect("users.v1.UserService") as channel:
        stub = users_pb2_grpc.UserServiceStub(channel)
        assert_type(stub, UserServiceAsyncStub)
        user = await stub.GetUser(users_pb2.GetUserRequest(id="ada"))
        assert_type(user, users_pb2.User)
        async for change in stub.WatchUsers(users_pb2.WatchUsersRequest()):
            assert_type(change, users_pb2.WatchUsersResponse)
    plain: grpc.aio.Channel = mesh.connect("users.v1.UserService", endpoints=["127.0.0.1:50051"])
    await plain.close()


async def failures() -> None:
    async with mesh.connect("users.v1.UserService") as channel:
        try:
            await users_pb2_grpc.UserServiceStub(channel).GetUser(users_pb2.GetUserRequest(id="ada"))
        except grpc.aio.AioRpcError as e:
            for attempt in mesh.attempts(e):
                assert_type(attempt, mesh.AttemptRecord)


def blocks() -> None:
    with blocking.connect("users.v1.UserService") as channel:
        plain: grpc.Channel = channel
        stub = users_pb2_grpc.UserServiceStub(plain)
        assert_type(stub.GetUser(users_pb2.GetUserRequest(id="ada")), users_pb2.User)


class Servicer(users_pb2_grpc.UserServiceServicer):
    async def GetUser(self, request: users_pb2.GetUserRequest, context: Any) -> users_pb2.User:
        if not request.id:
            raise mesh.Refusal(grpc.StatusCode.INVALID_ARGUMENT, "say who", "NO_ID", "users.v1")
        return users_pb2.User(id=request.id)


async def serves(servicer: Servicer) -> None:
    settings = mesh.Settings.from_env({"MESH_ETCD": "127.0.0.1:2379"})
    async with mesh.Server(servicer, settings=settings) as server:
        await server.pause()
        await server.resume()
    await mesh.serve(servicer, settings=settings)
