"""What every UserStore promises: checks that the in-memory, the SQLite and the PostgreSQL store all pass.

Each check gets an `Opening` on an empty database and may open several instances on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from mesh.errors import Refusal
from users.v1.users_pb2 import CreateUserRequest, DeleteUserRequest, UpdateUserRequest, User
from usersvc.store import Change, ChangesForgotten, Happened, Retention, UserStore
from usersvc.writes import Create, Delete, Named, Update

REQUEST = "01890a5d-ac96-774b-bcce-b302099a8057"


@dataclass
class HandClock:
    """A clock that a test moves."""

    now: float = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Opening:
    """Opens instances of the service's store on one database."""

    open_one: Callable[[HandClock, Retention], Awaitable[UserStore]]
    clock: HandClock = field(default_factory=HandClock)
    retention: Retention = field(default_factory=Retention)

    @asynccontextmanager
    async def instances(self, count: int) -> AsyncIterator[list[UserStore]]:
        stores: list[UserStore] = []
        try:
            for _ in range(count):
                stores.append(await self.open_one(self.clock, self.retention))
            yield stores
        finally:
            for store in stores:
                await store.close()

    @asynccontextmanager
    async def instance(self) -> AsyncIterator[UserStore]:
        async with self.instances(1) as (store,):
            yield store


def ada(id: str = "ada", email: str = "ada@example.com", name: str = "Ada") -> User:
    return User(id=id, name=name, email=email)


async def create(store: UserStore, user: User, request_id: str = "") -> User:
    named = Named.of(request_id, "CreateUser", CreateUserRequest(user=user, request_id=request_id))
    return User.FromString(await store.write(Create(user, named)))


async def update(store: UserStore, user: User, *fields: str, request_id: str = "") -> User:
    named = Named.of(request_id, "UpdateUser", UpdateUserRequest(user=user, request_id=request_id))
    return User.FromString(await store.write(Update(user, fields, named)))


async def delete(store: UserStore, id: str, etag: str = "", request_id: str = "") -> None:
    named = Named.of(request_id, "DeleteUser", DeleteUserRequest(id=id, etag=etag, request_id=request_id))
    assert await store.write(Delete(id, etag, named)) == b""


async def refused(work: Awaitable[object], reason: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await work
    assert caught.value.reason == reason
    return caught.value


async def all_changes(store: UserStore, after: int = 0) -> list[Change]:
    found: list[Change] = []
    while batch := await store.changes(after, 7):
        found += batch
        after = batch[-1].sequence
    return found


async def check_a_created_user_is_read_back(opening: Opening) -> None:
    async with opening.instances(2) as (one, other):
        made = await create(one, ada())
        assert made.create_time == made.update_time
        assert made.create_time.ToMicroseconds() == int(opening.clock.now * 1_000_000)
        assert made.etag
        assert await one.get("ada") == made == await other.get("ada")
        assert await one.get("nobody") is None


async def check_a_taken_id_and_a_taken_email_are_refused(opening: Opening) -> None:
    async with opening.instance() as store:
        await create(store, ada(email="ADA@Straße.example"))
        await refused(create(store, ada(email="other@example.com")), "USER_ALREADY_EXISTS")
        await refused(create(store, ada("bob", "ada@STRASSE.example")), "EMAIL_TAKEN")
        assert [u.id for u in await store.page("", 10)] == ["ada"]


async def check_an_update_changes_only_what_it_names(opening: Opening) -> None:
    async with opening.instance() as store:
        made = await create(store, ada())
        opening.clock.now += 1
        changed = await update(store, User(id="ada", name="Countess", email="ignored"), "name")
        assert (changed.name, changed.email, changed.create_time) == ("Countess", made.email, made.create_time)
        assert changed.etag != made.etag
        assert changed.update_time.ToMicroseconds() > made.update_time.ToMicroseconds()
        assert await store.get("ada") == changed


async def check_an_update_time_never_goes_back(opening: Opening) -> None:
    async with opening.instance() as store:
        made = await create(store, ada())
        opening.clock.now -= 3600
        changed = await update(store, User(id="ada", name="Countess"), "name")
        assert changed.update_time.ToMicroseconds() > made.update_time.ToMicroseconds()


async def check_a_stale_etag_changes_nothing(opening: Opening) -> None:
    async with opening.instance() as store:
        made = await create(store, ada())
        changed = await update(store, User(id="ada", name="Countess", etag=made.etag), "name")
        await refused(update(store, User(id="ada", name="Lost", etag=made.etag), "name"), "STALE_ETAG")
        await refused(delete(store, "ada", made.etag), "STALE_ETAG")
        assert await store.get("ada") == changed
        await delete(store, "ada", changed.etag)


async def check_a_moved_email_frees_the_old_one(opening: Opening) -> None:
    async with opening.instance() as store:
        await create(store, ada())
        await create(store, ada("bob", "bob@example.com"))
        await refused(update(store, User(id="bob", email="ADA@example.com"), "email"), "EMAIL_TAKEN")
        await update(store, User(id="ada", email="ADA@example.com"), "email")  # one's own, in another case
        await update(store, User(id="ada", email="new@example.com"), "email")
        await update(store, User(id="bob", email="ada@example.com"), "email")
        await delete(store, "bob")
        await create(store, ada("eve", "ada@example.com"))


async def check_the_merged_user_is_checked(opening: Opening) -> None:
    async with opening.instance() as store:
        made = await create(store, ada())
        await refused(update(store, User(id="ada", name="Countess"), "name", "email"), "INVALID_USER")
        assert await store.get("ada") == made


async def check_an_update_to_the_same_is_no_change(opening: Opening) -> None:
    async with opening.instance() as store:
        made = await create(store, ada())
        assert await update(store, User(id="ada", name="Ada"), "name") == made
        assert len(await all_changes(store)) == 1


async def check_missing_users_are_told(opening: Opening) -> None:
    async with opening.instance() as store:
        await refused(update(store, User(id="nobody", name="x"), "name"), "USER_NOT_FOUND")
        await refused(delete(store, "nobody"), "USER_NOT_FOUND")


async def check_pages_are_complete_and_in_the_order_of_bytes(opening: Opening) -> None:
    ids = ["0", "9", "A", "Z", "a", "a-b", "a.b", "aB", "a_b", "ab", "a~b", "z" * 64]
    async with opening.instance() as store:
        for id in reversed(ids):
            await create(store, ada(id, f"{len(id)}.{ids.index(id)}@example.com"))
        seen: list[str] = []
        while page := await store.page(seen[-1] if seen else "", 5):
            assert len(page) <= 5
            seen += [user.id for user in page]
        assert seen == sorted(ids)


async def check_several_are_read_at_once(opening: Opening) -> None:
    async with opening.instance() as store:
        made = {id: await create(store, ada(id, f"{id}@example.com")) for id in ("a", "b", "c")}
        assert await store.get_many(["c", "nobody", "a", "a"]) == {"a": made["a"], "c": made["c"]}
        assert await store.get_many([f"none{n}" for n in range(1000)]) == {}


async def check_a_repeat_has_the_first_answer(opening: Opening) -> None:
    async with opening.instances(2) as (one, other):
        made = await create(one, ada(), REQUEST)
        await update(one, User(id="ada", name="Countess"), "name")
        assert await create(other, ada(), REQUEST) == made
        await refused(create(one, ada(name="Bob"), REQUEST), "REQUEST_ID_REUSED")
        await refused(delete(one, "ada", request_id=REQUEST), "REQUEST_ID_REUSED")


async def check_a_repeated_delete_and_update_succeed(opening: Opening) -> None:
    gone, named = REQUEST.replace("8057", "0001"), REQUEST.replace("8057", "0002")
    async with opening.instances(2) as (one, other):
        made = await create(one, ada())
        change = User(id="ada", name="Countess", etag=made.etag)
        changed = await update(one, change, "name", request_id=named)
        assert await update(other, change, "name", request_id=named) == changed
        await delete(one, "ada", changed.etag, gone)
        await delete(other, "ada", changed.etag, gone)
        await refused(delete(other, "ada", changed.etag), "USER_NOT_FOUND")


async def check_a_refused_request_may_be_repeated(opening: Opening) -> None:
    async with opening.instance() as store:
        await create(store, ada("bob"))
        await refused(create(store, ada(), REQUEST), "EMAIL_TAKEN")
        await delete(store, "bob")
        await create(store, ada(), REQUEST)


async def check_a_request_is_forgotten_when_it_expires(opening: Opening) -> None:
    async with opening.instance() as store:
        await create(store, ada(), REQUEST)
        opening.clock.now += opening.retention.requests - 1
        await store.prune()
        await create(store, ada(), REQUEST)
        opening.clock.now += 2
        await refused(create(store, ada(), REQUEST), "USER_ALREADY_EXISTS")
        await store.prune()
        await create(store, ada("bob", "bob@example.com"), REQUEST)


async def check_one_request_sent_fifty_times_at_once_makes_one_user(opening: Opening) -> None:
    async with opening.instances(3) as stores:
        # As a servicer does it: each attempt brings an id of its own, the request has none.
        named = Named.of(REQUEST, "CreateUser", CreateUserRequest(user=ada(id=""), request_id=REQUEST))
        writes = [Create(ada(id=f"made-{n}"), named) for n in range(50)]
        answers = await asyncio.gather(*(stores[n % 3].write(write) for n, write in enumerate(writes)))
        assert len(set(answers)) == 1
        assert [user.SerializeToString() for user in await stores[0].page("", 10)] == [answers[0]]
        assert len(await all_changes(stores[1])) == 1


async def check_of_many_updates_with_one_etag_one_wins(opening: Opening) -> None:
    async with opening.instances(3) as stores:
        made = await create(stores[0], ada())
        tries = (update(stores[n % 3], User(id="ada", name=f"N{n}", etag=made.etag), "name") for n in range(20))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        won = [outcome for outcome in outcomes if isinstance(outcome, User)]
        assert [await stores[1].get("ada")] == won
        assert {o.reason for o in outcomes if isinstance(o, Refusal)} == {"STALE_ETAG"}


async def check_of_many_creates_with_one_email_one_wins(opening: Opening) -> None:
    async with opening.instances(3) as stores:
        tries = (create(stores[n % 3], ada(f"u{n}", "SAME@example.com".swapcase())) for n in range(20))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(outcome, User) for outcome in outcomes) == 1
        assert {o.reason for o in outcomes if isinstance(o, Refusal)} == {"EMAIL_TAKEN"}


async def check_changes_are_told_in_order(opening: Opening) -> None:
    async with opening.instances(2) as (one, other):
        assert await one.head() == 0
        made = await create(one, ada())
        changed = await update(other, User(id="ada", name="Countess"), "name")
        await delete(one, "ada")
        told = await all_changes(other)
        assert [change.happened for change in told] == [Happened.CREATED, Happened.UPDATED, Happened.DELETED]
        assert [change.user for change in told] == [made, changed, changed]
        assert sorted({change.sequence for change in told}) == [change.sequence for change in told]
        assert await other.head() == told[-1].sequence
        assert await all_changes(one, told[1].sequence) == told[2:]
        with pytest.raises(ChangesForgotten):
            await one.changes(told[-1].sequence + 1000, 10)


async def check_a_watcher_misses_nothing_while_many_write(opening: Opening) -> None:
    async with opening.instances(3) as stores:
        seen: list[str] = []

        async def follow() -> None:
            after = 0
            while len(seen) < 150:
                batch = await stores[0].changes(after, 20)
                seen.extend(change.user.id for change in batch)
                after = batch[-1].sequence if batch else after
                await asyncio.sleep(0.001)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(follow())
            for n in range(150):
                group.create_task(create(stores[n % 3], ada(f"u{n}", f"{n}@example.com")))
        assert sorted(seen) == sorted(f"u{n}" for n in range(150))


async def check_old_changes_are_forgotten(opening: Opening) -> None:
    opening.retention = Retention(changes=100.0, change_rows=5)
    async with opening.instance() as store:
        for n in range(8):
            await create(store, ada(f"u{n}", f"{n}@example.com"))
        told = await all_changes(store)
        await store.prune()
        assert await all_changes(store, told[2].sequence) == told[3:]
        with pytest.raises(ChangesForgotten):
            await store.changes(told[1].sequence, 10)
        opening.clock.now += 101
        await store.prune()
        with pytest.raises(ChangesForgotten):
            await store.changes(told[6].sequence, 10)
        assert await store.head() == told[7].sequence
        assert await all_changes(store, told[7].sequence) == []
        await delete(store, "u0")
        (last,) = await all_changes(store, told[7].sequence)
        assert last.sequence > told[7].sequence


async def check_hostile_text_is_kept_as_it_is(opening: Opening) -> None:
    texts = ["'; DROP TABLE users; --", '{"$ne": null}', "%s %d {0} $1 ?1 :id", "\\0 \\n 雪だるま ☃ 𝄞", "NULL"]
    async with opening.instance() as store:
        for n, text in enumerate(texts):
            await create(store, ada(f"u{n}", f"o'{n}@example.com", text))
        assert [user.name for user in await store.page("", 10)] == texts
        assert await store.get("' OR 1=1 --") is None


async def check_a_cancelled_write_is_done_or_not_done(opening: Opening) -> None:
    async with opening.instance() as store:
        for n in range(30):
            task = asyncio.create_task(create(store, ada(f"u{n}", f"{n}@example.com")))
            for _ in range(n % 6):
                await asyncio.sleep(0.0005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        last = await create(store, ada("last", "last@example.com"))
        users = await store.page("", 100)
        assert last in users
        assert sorted(change.user.id for change in await all_changes(store)) == sorted(user.id for user in users)


async def check_one_key_for_all_instances(opening: Opening) -> None:
    async with opening.instances(2) as (one, other):
        assert one.key == other.key
        assert len(one.key) >= 30


CHECKS: Iterable[Callable[[Opening], Coroutine[None, None, None]]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
