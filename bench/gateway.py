"""The rival of the edge: a gateway as a team writes one, HTTP/JSON by FastAPI in front of a grpc.aio stub.

    SERVICE=127.0.0.1:50051 python -m uvicorn bench.gateway:app --loop uvloop --http httptools --no-access-log

One process, one channel. Its paths, bodies and answers are those that the front proxy derives from the contract.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from users.v1 import users_pb2, users_pb2_grpc

_TIMEOUT = 5.0
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class NewUser(BaseModel):
    """What callers send."""

    model_config = ConfigDict(extra="forbid")

    id: str = ""
    name: str
    email: str


class User(BaseModel):
    """What callers get."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    id: str
    name: str
    email: str
    create_time: datetime
    update_time: datetime
    etag: str


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with grpc.aio.insecure_channel(os.environ["SERVICE"]) as channel:
        app.state.users = users_pb2_grpc.UserServiceStub(channel)
        yield


app = FastAPI(lifespan=_lifespan)


@app.exception_handler(grpc.aio.AioRpcError)
async def _failed(request: Request, error: grpc.aio.AioRpcError) -> JSONResponse:
    content = {"code": error.code().value[0], "message": error.details()}
    return JSONResponse(content, status_code=_STATUS.get(error.code(), 500))


@app.get("/v1/users/{user_id}")
async def get_user(user_id: str, request: Request) -> User:
    """Get a user."""
    users = request.app.state.users
    return _user(await users.GetUser(users_pb2.GetUserRequest(id=user_id), timeout=_TIMEOUT))


@app.post("/v1/users")
async def create_user(user: NewUser, request: Request, requestId: str = "") -> User:
    """Create a user."""
    users = request.app.state.users
    new = users_pb2.User(id=user.id, name=user.name, email=user.email)
    return _user(await users.CreateUser(users_pb2.CreateUserRequest(user=new, request_id=requestId), timeout=_TIMEOUT))


def _user(user: Any) -> User:
    return User(
        id=user.id,
        name=user.name,
        email=user.email,
        create_time=user.create_time.ToDatetime(tzinfo=UTC),
        update_time=user.update_time.ToDatetime(tzinfo=UTC),
        etag=user.etag,
    )
