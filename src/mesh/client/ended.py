"""Reading a grpc.aio call that has ended, without waiting; and telling who cancelled it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import grpc

_OK = grpc.StatusCode.OK

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


def code_of(ended: Any) -> Any:
    """Return the code of an ended grpc.aio call. The call beneath it, which is not public, says without a coroutine
    whether it is OK: in a third of the time. Where there is none, `code` says the same.
    """
    beneath = getattr(ended, "_cython_call", None)
    return _OK if beneath is not None and beneath.is_ok() else peek(ended.code())


def was_cancelled_here(code: str, details: str) -> bool:
    """Tell whether it was this process that cancelled the call; a server may answer CANCELLED too."""
    return code == "CANCELLED" and details in (LOCALLY_CANCELLED, COLLECTED)
