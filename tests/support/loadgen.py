"""The process behind `support.load`: `python -m support.loadgen '{"road": …}'`. Prints "ready" once the first calls
have gone well, then calls at a steady rate until stdin is closed, waits for those in flight, and writes what became of
all of them. Asked "state" it prints one line about itself (`support.callers.State`), asked "view" what of that costs
its callers nothing; asked "rest" it first stops calling until it is told to "go"; "rate=50" is fifty calls a second
from then on.

What a caller of the road would do and nothing more: no retries, no timeouts but the deadline of the job or a generous
last one. `support.callers` has the callers of each road.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from support.callers import SEEDED, BadStatus, Caller, open_road

_LAST_TIMEOUT = 20.0
# Ten calls, seven of them reads; the order is fixed so that every run is alike.
_ROTA = ("get", "list", "get", "create", "get", "get", "update", "list", "get", "create")


async def _one(caller: Caller, kind: str, number: int, due: float) -> tuple[float, float, str, str, str]:
    code, detail = "OK", ""
    try:
        async with asyncio.timeout(caller.patience):
            await caller(kind, number)
    except grpc.RpcError as e:
        failed: Any = e  # a grpc.Call too, which the types do not say
        code, detail = failed.code().name, failed.details() or ""
    except BadStatus as e:
        code, detail = e.code, str(e)
    except Exception as e:
        code, detail = type(e).__name__, str(e)
    return due, time.monotonic() - due, f"{caller.name} {kind}", code, detail


class _Orders:
    """What comes over stdin: lines, and its end."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.given: list[str] = []
        asyncio.get_running_loop().add_reader(sys.stdin, self._read)

    def _read(self) -> None:
        text = os.read(sys.stdin.fileno(), 65536).decode()
        if text:
            self.given += text.split()
        else:
            asyncio.get_running_loop().remove_reader(sys.stdin)
            self.ended.set()


async def _drive(job: Mapping[str, Any]) -> list[tuple[float, float, str, str, str]]:
    orders = _Orders()
    async with open_road(job, _LAST_TIMEOUT) as road:
        for caller in road.callers:
            for number in range(SEEDED):
                await caller("create", -1 - number, _LAST_TIMEOUT)
        print("ready", flush=True)
        tasks: list[asyncio.Task[tuple[float, float, str, str, str]]] = []
        begin, number = time.monotonic(), 0
        rate, resting = float(job["rate"]), False
        while not orders.ended.is_set():
            while orders.given:
                order = orders.given.pop(0)
                if order == "rest":
                    resting = True
                    await asyncio.wait(tasks) if tasks else None
                elif order == "go":
                    resting, begin = False, time.monotonic() - number / rate
                elif order.startswith("rate="):
                    rate = float(order.removeprefix("rate="))
                    begin = time.monotonic() - number / rate
                told = road.view() if order == "view" else road.state()
                print(json.dumps(told), flush=True)
            due = begin + number / rate
            if resting or due > time.monotonic():
                await asyncio.sleep(0.005 if resting else max(0.0, due - time.monotonic()))
                continue
            caller = road.callers[number % len(road.callers)]
            kind = _ROTA[number // len(road.callers) % len(_ROTA)]
            tasks.append(asyncio.create_task(_one(caller, kind, number, due)))
            number += 1
        return list(await asyncio.gather(*tasks))


def main() -> None:
    """Run one road's load."""
    job = json.loads(sys.argv[1])
    Path(job["out"]).write_text(json.dumps(asyncio.run(_drive(job))))


if __name__ == "__main__":
    main()
