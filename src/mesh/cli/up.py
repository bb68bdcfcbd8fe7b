"""`mesh up`: the story of a local stack, from an empty folder to a clean leave. Its parts are in `stack`."""

from __future__ import annotations

import asyncio
import signal

from mesh.cli.failure import INTERRUPTED, MISUSED, Failure
from mesh.cli.folder import DataFolder
from mesh.cli.layout import Layout, Options, has_room
from mesh.cli.report import Report
from mesh.cli.stack import Stack
from mesh.clock import Clock, Dice


async def up(options: Options, report: Report, clock: Clock, dice: Dice) -> int:
    """Run a local stack until SIGINT or SIGTERM; return the exit code. Raises Failure."""
    folder = DataFolder(options.data)
    folder.take()
    stack: Stack | None = None
    try:
        if not has_room(folder.path):
            raise Failure(f"{folder.path} is on a full disk: free some space or choose --data", code=MISUSED)
        stack = Stack(Layout.decide(options, folder, clock, dice), report, clock)
        return await _run(stack, report)
    finally:
        report.end()
        if stack is not None:
            stack.close()
        folder.release()


async def _run(stack: Stack, report: Report) -> int:
    """Start, watch, and leave when told to; the second signal, or a failure, ends everything at once."""
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked.put_nowait, number)

    async def serve() -> None:
        await stack.start()
        await stack.watch()

    serving = asyncio.create_task(serve())
    told = asyncio.create_task(asked.get())
    try:
        await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            serving.result()
        serving.cancel()
        report.end()
        report.say("stopping; press Ctrl-C again to kill")
        leaving, again = asyncio.create_task(stack.leave()), asyncio.create_task(asked.get())
        await asyncio.wait({leaving, again}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            again.cancel()
            leaving.result()
            report.say("stopped")
            return 0
        leaving.cancel()
        report.say("killed")
        return INTERRUPTED
    finally:
        told.cancel()
        serving.cancel()
        await asyncio.gather(serving, told, return_exceptions=True)
        await stack.kill()
