"""What `with_call` hands out beside the response of a call that succeeded at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from mesh.client.blocking_error import Metadatum, pairs
from mesh.instance import AttemptRecord


class AnsweredCall(grpc.Call, grpc.Future):  # type: ignore[type-arg]  # at run time grpc.Future takes no parameters
    """A call that has ended well with its first attempt."""

    attempts: tuple[AttemptRecord, ...] = ()
    """The failed attempts: none."""

    def __init__(self, response: Any, call: grpc.Call) -> None:
        self._response = response
        self._call = call

    def code(self) -> grpc.StatusCode:
        """OK."""
        return grpc.StatusCode.OK

    def details(self) -> str:
        """The server's words; mostly none."""
        return self._call.details() or ""

    def debug_error_string(self) -> str:
        """Nothing: there is no error."""
        return ""

    def initial_metadata(self) -> tuple[Metadatum, ...]:
        """First metadata of the answer."""
        return pairs(self._call.initial_metadata())

    def trailing_metadata(self) -> tuple[Metadatum, ...]:
        """Last metadata of the answer."""
        return pairs(self._call.trailing_metadata())

    def time_remaining(self) -> float:
        """Seconds that were left of the deadline, at least 0."""
        return max(0.0, self._call.time_remaining() or 0.0)

    def result(self, timeout: float | None = None) -> Any:
        """Return the response."""
        return self._response

    def exception(self, timeout: float | None = None) -> None:
        """None: there is no error."""
        return

    def traceback(self, timeout: float | None = None) -> None:
        """None: there is no error."""
        return

    def is_active(self) -> bool:
        """False: it has ended."""
        return False

    def running(self) -> bool:
        """False: it has ended."""
        return False

    def done(self) -> bool:
        """True: it has ended."""
        return True

    def cancel(self) -> bool:
        """False: it has ended."""
        return False

    def cancelled(self) -> bool:
        """False: it was answered."""
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """False: it has ended, and `callback` is not called."""
        return False

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Call back at once."""
        fn(self)
