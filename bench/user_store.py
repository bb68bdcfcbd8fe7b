"""What keeping users in SQLite costs: a read in the loop and by a thread, and durable writes one by one and in groups.

    python bench/user_store.py [--directory .] [--rounds 5]

The directory decides which disk is measured. CPU is this process's own, threads included; rates are by the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from users.v1.users_pb2 import GetUserRequest, User
from usersvc.servicer import UserService
from usersvc.sqlite import SqliteStore
from usersvc.writes import Create

READS, ALONE, TOGETHER, AT_ONCE = 2000, 200, 3200, 64


class _Caller:
    def time_remaining(self) -> float:
        return 4.0


async def _cpu_us(work: Callable[[], Awaitable[object]]) -> float:
    begun = time.process_time()
    for _ in range(READS):
        await work()
    return (time.process_time() - begun) / READS * 1e6


async def _per_second(store: SqliteStore, ids: itertools.count[int], count: int, at_once: int) -> float:
    async def write() -> None:
        for _ in range(count // at_once):
            n = next(ids)
            await store.write(Create(User(id=f"u{n}", name="Ada", email=f"{n}@example.org")))

    begun = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(at_once)))
    return count / (time.perf_counter() - begun)


async def _measure(directory: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as home:
        store = await SqliteStore.open(Path(home) / "users.db")
        service, ids = UserService(store), itertools.count()
        await store.write(Create(User(id="ada", name="Ada", email="ada@example.org")))
        request, caller = GetUserRequest(id="ada"), _Caller()

        async def by_thread() -> None:
            await store._read(lambda c: c.execute("SELECT * FROM users WHERE id = 'ada'").fetchall(), near=False)

        print(
            "CPU µs: GetUser's handler, of it the read; the same read by a thread | durable writes/s: alone, 64 at once"
        )
        for _ in range(rounds):
            handler = await _cpu_us(lambda: service.GetUser(request, caller))
            near, far = await _cpu_us(lambda: store.get("ada")), await _cpu_us(by_thread)
            alone = await _per_second(store, ids, ALONE, 1)
            together = await _per_second(store, ids, TOGETHER, AT_ONCE)
            print(f"{handler:5.1f} {near:5.1f} {far:5.1f} | {alone:7.0f} {together:7.0f}  = {together / alone:.1f} ×")
        await store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", default=".")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(_measure(arguments.directory, arguments.rounds))
