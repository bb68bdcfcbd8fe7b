"""Reading a grpc.aio call that has ended, without waiting; and telling who cancelled it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

LOCALLY_CANCELLED = "Locally cancelled by application!"
COLLECTED = "Cancelled upon garbage collection!"
"""The details that grpc.aio gives a call which its own side cancelled; tests/client holds the library to both."""
WRITE_FAILED = "Internal error from Core"
"""What grpc.aio calls the status of a stream that ended under a write, until it has read the real one (it does not
call back then).
"""


def peek(ended: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine of an ended grpc.aio call returns: it does not wait, so no task is needed."""
    try:
        ended.send(None)
    except StopIteration as e:
        return e.value
    ended.close()
    raise RuntimeError("this call has not ended")


def was_cancelled_here(code: str, details: str) -> bool:
    """Tell whether it was this process that cancelled the call; a server may answer CANCELLED too."""
    return code == "CANCELLED" and details in (LOCALLY_CANCELLED, COLLECTED)
