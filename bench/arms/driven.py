"""Servers as arms: this process calls, and the servers' processes are what is measured."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from bench.arms.client import Arms, many, stub_of
from bench.measure import Arm


@asynccontextmanager
async def get_user(job: Mapping[str, Any]) -> AsyncIterator[Arms]:
    """GetUser, 50 in flight. The job's `servers` are (name, address, pid); the first is the baseline."""
    async with AsyncExitStack() as stack:
        arms = {}
        for name, address, pid in job["servers"]:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            arms[name] = Arm(many(stub_of(channel)), pids=(pid,))
        (_, baseline), *others = arms.items()
        yield baseline, dict(others)
