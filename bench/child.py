"""A fresh process of the bench: `python -m bench.child '{"arms": "module:function", …}'`. Prints one line of JSON.

Orders: {"arms", "job", "calls", "rounds"} runs a comparison (`bench.measure.rounds`); {"call", "job"} calls a function,
async or plain, with the job and tells what it returns. {"cores", "beside": [pid, …]} beside arms says how this process
and those of the list are placed (`bench.cores`).
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from bench import cores
from bench.measure import rounds


async def _compare(order: dict[str, Any]) -> object:
    async with _found(order["arms"])(order["job"]) as (baseline, others):
        if order.get("cores", "any") != "any":
            measured = {pid or os.getpid() for arm in (baseline, *others.values()) for pid in arm.pids}
            cores.place(order["cores"], measured, order["beside"])
        return (await rounds(baseline, others, calls=order["calls"], count=order["rounds"])).to_json()


def _call(order: dict[str, Any]) -> object:
    made = _found(order["call"])(order["job"])
    return asyncio.run(made) if inspect.iscoroutine(made) else made


def _found(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _loop_of(job: Any) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop that a job asks for: {"loop": "uvloop"}, for callers that shall cost little."""
    if isinstance(job, dict) and job.get("loop") == "uvloop":
        import uvloop

        made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return made
    return None


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Carry out the order."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    order = json.loads(sys.argv[1])
    with asyncio.Runner(loop_factory=_loop_of(order["job"])) as runner:
        told = runner.run(_compare(order)) if "arms" in order else _call(order)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
