"""The face to callers, over the store in memory: what is checked, refused, and answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import ResourceInfo, RetryInfo

from contract.users import REQUEST, HandClock, ada, refused
from mesh.errors import Refusal
from users.v1.users_pb2 import (
    BatchGetUsersRequest,
    CreateUserRequest,
    DeleteUserRequest,
    GetUserRequest,
    ListUsersRequest,
    UpdateUserRequest,
    User,
    WatchUsersRequest,
    WatchUsersResponse,
)
from usersvc.memory import MemoryStore
from usersvc.servicer import UserService
from usersvc.store import Retention, StoreFull, StoreUnavailable
from usersvc.writes import Create

Story = Callable[[UserService], Awaitable[None]]
Change = WatchUsersResponse.Change


class Caller:
    """What a handler asks of its caller."""

    def __init__(self, left: float | None = None) -> None:
        self._left = left

    def time_remaining(self) -> float | None:
        return self._left


CALLER = Caller()


def run(story: Story, **options: Any) -> None:
    clock = HandClock()
    asyncio.run(story(UserService(MemoryStore(clock=clock), clock=clock, dice=random.Random(7), **options)))  # type: ignore[arg-type]  # every story is a coroutine function


async def made(service: UserService, id: str = "", **fields: str) -> User:
    user = ada(id, **{"email": f"{id or 'x'}@example.com", **fields})
    return await service.CreateUser(CreateUserRequest(user=user), CALLER)


def watching(service: UserService, token: str = "") -> AsyncIterator[WatchUsersResponse]:
    return service.WatchUsers(WatchUsersRequest(resume_token=token), CALLER)


def test_an_id_is_made_when_none_is_given() -> None:
    async def story(service: UserService) -> None:
        assert UUID((await made(service)).id).version == 7

    run(story)


def test_output_only_fields_of_a_new_user_are_not_taken_over() -> None:
    async def story(service: UserService) -> None:
        user = ada()
        user.etag = "mine"
        user.create_time.seconds = 1
        answer = await service.CreateUser(CreateUserRequest(user=user), CALLER)
        assert answer.etag != "mine"
        assert answer.create_time.seconds == 1_800_000_000

    run(story)


def test_a_wrong_request_is_refused_before_the_database_is_asked() -> None:
    class Untouchable(MemoryStore):
        async def write(self, write: object) -> bytes:
            raise AssertionError

        async def get(self, id: str) -> User | None:
            raise AssertionError

    async def story() -> None:
        service = UserService(Untouchable())
        await refused(service.CreateUser(CreateUserRequest(), CALLER), "INVALID_USER")
        await refused(service.GetUser(GetUserRequest(id="/"), CALLER), "INVALID_USER")
        await refused(service.DeleteUser(DeleteUserRequest(), CALLER), "INVALID_USER")
        await refused(service.UpdateUser(UpdateUserRequest(user=User(id="a", name="\0")), CALLER), "INVALID_USER")
        await refused(service.UpdateUser(UpdateUserRequest(user=User(name="x")), CALLER), "INVALID_USER")
        mask = FieldMask(paths=["password"])
        await refused(service.UpdateUser(UpdateUserRequest(user=ada(), update_mask=mask), CALLER), "INVALID_REQUEST")
        await refused(service.CreateUser(CreateUserRequest(user=ada(), request_id="x"), CALLER), "INVALID_REQUEST")
        await refused(service.ListUsers(ListUsersRequest(page_size=-1), CALLER), "INVALID_REQUEST")
        await refused(service.BatchGetUsers(BatchGetUsersRequest(), CALLER), "INVALID_REQUEST")

    asyncio.run(story())


def test_a_missing_user_is_named() -> None:
    async def story(service: UserService) -> None:
        refusal = await refused(service.GetUser(GetUserRequest(id="bob"), CALLER), "USER_NOT_FOUND")
        assert refusal.code is grpc.StatusCode.NOT_FOUND
        assert refusal.facts == {"id": "bob"}
        (about,) = refusal.details
        assert isinstance(about, ResourceInfo)
        assert (about.resource_type, about.resource_name) == ("users.v1.User", "bob")

    run(story)


def test_every_user_is_on_exactly_one_page() -> None:
    async def story(service: UserService) -> None:
        ids = sorted([(await made(service, f"u{n}")).id for n in range(23)])
        for size in (1, 5, 22, 23, 24):
            seen: list[str] = []
            token = ""
            while True:
                page = await service.ListUsers(ListUsersRequest(page_size=size, page_token=token), CALLER)
                seen += [user.id for user in page.users]
                token = page.next_page_token
                if not token:
                    break
                assert len(page.users) == size
            assert seen == ids

    run(story)


def test_users_that_come_and_go_between_pages_disturb_no_others() -> None:
    async def story(service: UserService) -> None:
        for n in range(10):
            await made(service, f"u{n}")
        first = await service.ListUsers(ListUsersRequest(page_size=5), CALLER)
        await service.DeleteUser(DeleteUserRequest(id="u4"), CALLER)  # the token's own place
        await made(service, "a")
        rest = await service.ListUsers(ListUsersRequest(page_token=first.next_page_token), CALLER)
        assert [user.id for user in rest.users] == ["u5", "u6", "u7", "u8", "u9"]

    run(story)


@pytest.mark.parametrize("token", ["x", "!!", "AAAAAAAAAAAAAAAAAAAAAAAAAAAA", "é", "\0"])
def test_a_made_up_token_is_refused(token: str) -> None:
    async def story(service: UserService) -> None:
        await refused(service.ListUsers(ListUsersRequest(page_token=token), CALLER), "INVALID_PAGE_TOKEN")
        await refused(anext(watching(service, token)), "INVALID_RESUME_TOKEN")

    run(story)


def test_a_token_of_another_method_is_refused() -> None:
    async def story(service: UserService) -> None:
        watch = await anext(watching(service))
        await refused(service.ListUsers(ListUsersRequest(page_token=watch.resume_token), CALLER), "INVALID_PAGE_TOKEN")

    run(story)


def test_an_update_by_mask_without_mask_and_by_star() -> None:
    async def story(service: UserService) -> None:
        await made(service, "ada")
        new = User(id="ada", name="New", email="new@example.com")
        by_mask = UpdateUserRequest(user=new, update_mask=FieldMask(paths=["name"]))
        answer = await service.UpdateUser(by_mask, CALLER)
        assert (answer.name, answer.email) == ("New", "ada@example.com")
        answer = await service.UpdateUser(UpdateUserRequest(user=User(id="ada", email="new@example.com")), CALLER)
        assert (answer.name, answer.email) == ("New", "new@example.com")
        star = FieldMask(paths=["*"])
        await refused(
            service.UpdateUser(UpdateUserRequest(user=User(id="ada", name="x"), update_mask=star), CALLER),
            "INVALID_USER",
        )
        answer = await service.UpdateUser(UpdateUserRequest(user=ada(), update_mask=star), CALLER)
        assert (answer.name, answer.email) == ("Ada", "ada@example.com")

    run(story)


def test_a_batch_is_answered_in_its_order_all_or_none() -> None:
    async def story(service: UserService) -> None:
        for id in ("a", "b"):
            await made(service, id)
        answer = await service.BatchGetUsers(BatchGetUsersRequest(ids=["b", "a", "b"]), CALLER)
        assert [user.id for user in answer.users] == ["b", "a", "b"]
        refusal = await refused(
            service.BatchGetUsers(BatchGetUsersRequest(ids=["a", "x", "y", "x"]), CALLER), "USER_NOT_FOUND"
        )
        assert [about.resource_name for about in refusal.details if isinstance(about, ResourceInfo)] == ["x", "y"]

    run(story)


def test_the_nil_request_id_names_nothing() -> None:
    async def story(service: UserService) -> None:
        request = CreateUserRequest(user=ada(), request_id=str(UUID(int=0)))
        await service.CreateUser(request, CALLER)
        await refused(service.CreateUser(request, CALLER), "USER_ALREADY_EXISTS")

    run(story)


def test_a_repeat_in_capitals_is_the_same_request_and_keeps_the_id_made() -> None:
    async def story(service: UserService) -> None:
        user = User(name="Ada", email="ada@example.com")
        first = await service.CreateUser(CreateUserRequest(user=user, request_id=REQUEST), CALLER)
        assert await service.CreateUser(CreateUserRequest(user=user, request_id=REQUEST.upper()), CALLER) == first

    run(story)


def test_no_refusal_tells_a_name_or_an_email() -> None:
    async def story(service: UserService) -> None:
        await made(service, "ada", name="Secret", email="secret@example.com")
        requests = [
            CreateUserRequest(user=User(id="ada", name="Secret", email="secret@example.com")),
            CreateUserRequest(user=User(id="bob", name="Secret\n", email="secret@example.com")),
            CreateUserRequest(user=User(id="bob", name="Secret", email="secret@@example.com")),
            CreateUserRequest(user=User(id="bob", name="Secret", email="SECRET@example.com")),
        ]
        for request in requests:
            with pytest.raises(Refusal) as caught:
                await service.CreateUser(request, CALLER)
            told = f"{caught.value} {dict(caught.value.facts)} {caught.value.details}"
            assert "secret" not in told.lower()

    run(story)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (StoreUnavailable("SELECT /var/lib"), grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
        (StoreFull("SELECT /var/lib"), grpc.StatusCode.RESOURCE_EXHAUSTED, "DATABASE_FULL"),
    ],
)
def test_a_database_in_trouble_is_told_in_the_words_of_the_contract(
    error: Exception, code: grpc.StatusCode, reason: str
) -> None:
    class Broken(MemoryStore):
        async def write(self, write: object) -> bytes:
            raise error

        async def get(self, id: str) -> User | None:
            raise error

    async def story() -> None:
        service = UserService(Broken())
        for work in (made(service, "ada"), service.GetUser(GetUserRequest(id="ada"), CALLER)):
            refusal = await refused(work, reason)
            assert refusal.code is code
            assert "SELECT" not in str(refusal)

    asyncio.run(story())


@pytest.mark.parametrize(("caller", "is_final"), [(Caller(), False), (Caller(0.05), True), (Caller(1e9), False)])
def test_nobody_waits_for_the_database_for_ever(caller: Caller, is_final: bool) -> None:
    class Stuck(MemoryStore):
        async def get(self, id: str) -> User | None:
            await asyncio.get_running_loop().create_future()
            return None

    async def story() -> None:
        service = UserService(Stuck(), patience=0.1)
        async with asyncio.timeout(5):
            refusal = await refused(service.GetUser(GetUserRequest(id="ada"), caller), "DATABASE_UNAVAILABLE")
        assert any(isinstance(detail, RetryInfo) for detail in refusal.details)
        assert refusal.is_final is is_final

    asyncio.run(story())


def test_a_watch_begins_at_once_tells_in_order_and_resumes() -> None:
    async def story(service: UserService) -> None:
        await made(service, "before")
        async with asyncio.timeout(10), aclosing(watching(service)) as watch:  # type: ignore[type-var]  # it is a generator
            begin = await anext(watch)
            assert (begin.change, begin.HasField("user")) == (Change.CHANGE_UNSPECIFIED, False)
            user = await made(service, "ada")
            first = await anext(watch)
            assert (first.change, first.user) == (Change.CHANGE_CREATED, user)
            await service.UpdateUser(UpdateUserRequest(user=User(id="ada", name="New")), CALLER)
            await service.DeleteUser(DeleteUserRequest(id="ada"), CALLER)
            rest = [await anext(watch), await anext(watch)]
            assert [told.change for told in rest] == [Change.CHANGE_UPDATED, Change.CHANGE_DELETED]
            assert rest[1].user.name == "New"
        async with asyncio.timeout(10), aclosing(watching(service, first.resume_token)) as watch:  # type: ignore[type-var]  # it is a generator
            assert (await anext(watch)).resume_token == first.resume_token
            assert [await anext(watch), await anext(watch)] == rest

    run(story)


def test_a_quiet_watch_gives_signs_of_life() -> None:
    async def story(service: UserService) -> None:
        async with asyncio.timeout(10), aclosing(watching(service)) as watch:  # type: ignore[type-var]  # it is a generator
            signs = [await anext(watch) for _ in range(4)]
            assert {sign.change for sign in signs} == {Change.CHANGE_UNSPECIFIED}

    run(story, sign_of_life=0.01)


def test_a_watch_from_before_the_history_is_out_of_range() -> None:
    async def story() -> None:
        store = MemoryStore(retention=Retention(change_rows=1))
        service = UserService(store)
        token = (await anext(watching(service))).resume_token
        for n in range(3):
            await made(service, f"u{n}")
        await store.prune()
        refusal = await refused(anext(watching(service, token)), "CHANGES_FORGOTTEN")
        assert refusal.code is grpc.StatusCode.OUT_OF_RANGE

    asyncio.run(story())


def test_a_change_by_another_instance_is_told_within_200_ms() -> None:
    class Counting(HandClock):
        async def sleep(self, seconds: float) -> None:
            self.now += seconds
            await asyncio.sleep(0)

    async def story() -> None:
        store, clock = MemoryStore(), Counting()
        service = UserService(store, clock=clock)
        async with asyncio.timeout(10), aclosing(watching(service)) as watch:  # type: ignore[type-var]  # it is a generator
            await anext(watch)
            told = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.01)  # it polls by now
            await store.write(Create(ada()))  # past this service, as another process would
            begun = clock.now
            assert (await told).user.id == "ada"
            assert clock.now - begun <= 0.2 + 1e-6

    asyncio.run(story())


def test_many_watchers_share_one_poll_and_leave_nothing_behind() -> None:
    class Counting(MemoryStore):
        heads = 0

        async def head(self) -> int:
            self.heads += 1
            return await super().head()

    async def story() -> None:
        store = Counting()
        service = UserService(store)
        watches = [watching(service) for _ in range(50)]
        for watch in watches:
            await anext(watch)
        before = store.heads
        told = [asyncio.ensure_future(anext(watch)) for watch in watches]
        await asyncio.sleep(0.35)
        assert store.heads - before <= 8
        await made(service, "ada")
        assert {answer.user.id for answer in await asyncio.gather(*told)} == {"ada"}
        for watch in watches:
            await watch.aclose()  # type: ignore[attr-defined]  # it is a generator
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)

    asyncio.run(story())


def test_watchers_are_told_when_the_database_goes_away() -> None:
    class Leaving(MemoryStore):
        gone = False

        async def head(self) -> int:
            if self.gone:
                raise StoreUnavailable("gone")
            return await super().head()

    async def story() -> None:
        store = Leaving()
        watch = watching(UserService(store))
        await anext(watch)
        told = asyncio.ensure_future(anext(watch))
        store.gone = True
        async with asyncio.timeout(5):
            await refused(told, "DATABASE_UNAVAILABLE")

    asyncio.run(story())
