"""A process of its own that writes users: run by test_processes.py, several at a time on one database.

usage: processes.py URL MODE NAME COUNT
  same    creates one user by one request_id, COUNT times at once, and prints each answer
  own     creates COUNT users of its own and prints the id of each once it is acknowledged
"""

from __future__ import annotations

import asyncio
import sys

from users.v1.users_pb2 import CreateUserRequest, User
from usersvc.database import open_store
from usersvc.servicer import UserService

REQUEST = "01890a5d-ac96-774b-bcce-b302099a8057"


class Caller:
    def time_remaining(self) -> None:
        return None


async def main(url: str, mode: str, name: str, count: int) -> None:
    store = await open_store(url)
    service = UserService(store, patience=30)

    async def one(n: int) -> None:
        if mode == "same":
            request = CreateUserRequest(user=User(name="Ada", email="ada@example.com"), request_id=REQUEST)
        else:
            request = CreateUserRequest(user=User(id=f"{name}-{n}", name="Ada", email=f"{name}.{n}@example.com"))
        user = await service.CreateUser(request, Caller())
        print(user.id if mode == "own" else user.SerializeToString().hex(), flush=True)

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    pending = set(range(count))
    while pending:
        await asyncio.gather(*(one(pending.pop()) for _ in range(min(20, len(pending)))))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
