"""Small words for asynchronous tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], within: float = 10.0, what: str = "") -> float:
    """Return once the condition holds, with the seconds it took; fail if it does not within so long."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > within:
            raise AssertionError(f"not within {within:g} s: {what or condition}")
        await asyncio.sleep(0.005)
    return time.monotonic() - begin


async def no_tasks_left(within: float = 3.0) -> None:
    """Fail if tasks of ours, other than the test's own, still run."""

    def ours() -> list[str]:
        return [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("mesh-")]

    await until(lambda: not ours(), within, f"tasks left: {ours()}")
