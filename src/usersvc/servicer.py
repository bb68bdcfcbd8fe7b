"""The face to callers: users.v1.UserService over a `UserStore`.

Each method checks its request (`rules`), asks the store, and answers; what is wrong leaves as a Refusal, which the
server turns into google.rpc.Status. No method waits for the database longer than its caller does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from mesh.clock import Clock, Dice
from mesh.wallclock import CLOCK, DICE
from users.v1.users_pb2 import (
    BatchGetUsersRequest,
    BatchGetUsersResponse,
    CreateUserRequest,
    DeleteUserRequest,
    GetUserRequest,
    ListUsersRequest,
    ListUsersResponse,
    UpdateUserRequest,
    User,
    WatchUsersRequest,
    WatchUsersResponse,
)
from users.v1.users_pb2_grpc import UserServiceServicer
from usersvc import refusals, rules
from usersvc.store import Change, ChangesForgotten, StoreFull, StoreUnavailable, UserStore
from usersvc.tokens import BadToken, Tokens
from usersvc.uuid7 import uuid7
from usersvc.watch import Tail
from usersvc.writes import Create, Delete, Named, Update, Write

PATIENCE = 3.0  # seconds that the database may take; a caller's shorter deadline wins
_SHARE = 0.9  # of the time left that the database may take; the rest is kept to say what went wrong
_SIGN_OF_LIFE = 15.0  # seconds between messages of a watch on which nothing happens
_WATCHED = 200  # changes that are read at once for a watcher

_LIST, _WATCH = "ListUsers", "WatchUsers"


class UserService(UserServiceServicer):
    """Keeps users in a store. One event loop owns it; it has no state but what lets watchers sleep."""

    def __init__(
        self,
        store: UserStore,
        *,
        clock: Clock = CLOCK,
        dice: Dice = DICE,
        patience: float = PATIENCE,
        sign_of_life: float = _SIGN_OF_LIFE,
    ) -> None:
        self._store = store
        self._clock = clock
        self._dice = dice
        self._patience = patience
        self._sign_of_life = sign_of_life
        self._tokens = Tokens(store.key)
        self._tail = Tail(store, clock)

    async def CreateUser(self, request: CreateUserRequest, context: Any) -> User:
        """Create a user; make an id where none is given."""
        named = Named.of(rules.check_request_id(request.request_id), "CreateUser", request)
        asked = User(id=request.user.id or self._new_id(), name=request.user.name, email=request.user.email)
        return User.FromString(await self._write(Create(rules.check_user(asked), named), context))

    async def GetUser(self, request: GetUserRequest, context: Any) -> User:
        """Get a user."""
        id = rules.check_id(request.id)
        async with self._bounded(context):
            user = await self._store.get(id)
        if user is None:
            raise refusals.user_not_found(id)
        return user

    async def ListUsers(self, request: ListUsersRequest, context: Any) -> ListUsersResponse:
        """List a page of users, in the order of their ids."""
        size = rules.check_page_size(request.page_size)
        after = ""
        if request.page_token:
            try:
                after = self._tokens.open(_LIST, request.page_token)
            except BadToken:
                raise refusals.bad_page_token() from None
        async with self._bounded(context):
            users = await self._store.page(after, size + 1)  # one more tells whether there is another page
        page = users[:size]
        token = self._tokens.seal(_LIST, page[-1].id) if len(users) > size else ""
        return ListUsersResponse(users=page, next_page_token=token)

    async def UpdateUser(self, request: UpdateUserRequest, context: Any) -> User:
        """Change the fields that the mask names."""
        named = Named.of(rules.check_request_id(request.request_id), "UpdateUser", request)
        rules.check_id(request.user.id, "user.id")
        mask: FieldMask = request.update_mask
        fields = rules.check_mask(mask.paths, request.user)
        rules.check_values(request.user, fields)
        return User.FromString(await self._write(Update(request.user, fields, named), context))

    async def DeleteUser(self, request: DeleteUserRequest, context: Any) -> Empty:
        """Delete a user."""
        named = Named.of(rules.check_request_id(request.request_id), "DeleteUser", request)
        await self._write(Delete(rules.check_id(request.id), request.etag, named), context)
        return Empty()

    async def BatchGetUsers(self, request: BatchGetUsersRequest, context: Any) -> BatchGetUsersResponse:
        """Get several users, all or none, in the order asked for."""
        ids = rules.check_batch(request.ids)
        async with self._bounded(context):
            found = await self._store.get_many(ids)
        missing = [id for id in dict.fromkeys(ids) if id not in found]
        if missing:
            raise refusals.user_not_found(*missing)
        return BatchGetUsersResponse(users=[found[id] for id in ids])

    async def WatchUsers(self, request: WatchUsersRequest, context: Any) -> AsyncIterator[WatchUsersResponse]:
        """Tell changes as they are committed, oldest first, and a sign of life at once and while nothing happens."""
        after = await self._begin_watch(request, context)
        yield self._told(after)
        while True:
            changes = await self._changes(after, context)
            for change in changes:
                after = change.sequence
                yield self._told(after, change)
            if not changes and not await self._moved(after):
                yield self._told(after)

    async def _begin_watch(self, request: WatchUsersRequest, context: Any) -> int:
        if not request.resume_token:
            async with self._bounded(context):
                return await self._store.head()
        try:
            after = int(self._tokens.open(_WATCH, request.resume_token))
        except BadToken:
            raise refusals.bad_resume_token() from None
        await self._changes(after, context)  # refused before the first message rather than after it
        return after

    async def _changes(self, after: int, context: Any) -> list[Change]:
        try:
            async with self._bounded(context):
                return list(await self._store.changes(after, _WATCHED))
        except ChangesForgotten:
            raise refusals.changes_forgotten() from None

    async def _moved(self, after: int) -> bool:
        """Wait for something to happen; return False if it is time for a sign of life."""
        try:
            async with asyncio.timeout(self._sign_of_life):
                await self._tail.passed(after)
        except TimeoutError:
            return False
        except StoreUnavailable:
            raise refusals.unavailable() from None
        return True

    def _told(self, sequence: int, change: Change | None = None) -> WatchUsersResponse:
        token = self._tokens.seal(_WATCH, str(sequence))
        if change is None:
            return WatchUsersResponse(resume_token=token)
        happened = WatchUsersResponse.Change.ValueType(change.happened)
        return WatchUsersResponse(change=happened, user=change.user, resume_token=token)

    async def _write(self, write: Write, context: Any) -> bytes:
        async with self._bounded(context):
            answer = await self._store.write(write)
        self._tail.nudge()
        return answer

    def _new_id(self) -> str:
        return uuid7(int(self._clock.time() * 1000), self._dice)

    @contextlib.asynccontextmanager
    async def _bounded(self, context: Any) -> AsyncIterator[None]:
        """Give the database as long as the caller waits and no longer; say its failures in the contract's words.

        All instances have the same database: who has waited for it as long as the caller does answers for all of them.
        """
        left = context.time_remaining()
        limit = self._patience if left is None else min(self._patience, left * _SHARE)
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError:
            raise refusals.unavailable(is_final=limit < self._patience) from None
        except StoreUnavailable:
            raise refusals.unavailable() from None
        except StoreFull:
            raise refusals.full() from None
