"""What a failed blocking call raises: gRPC's error, which is also the ended call, with an account of every attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grpc

from mesh.client.errors import CallError
from mesh.instance import AttemptRecord


class Metadatum(NamedTuple):
    """A pair of metadata, as the blocking API hands it out."""

    key: str
    value: str | bytes


def pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[Metadatum, ...]:
    """Return metadata in the form of the blocking API."""
    return tuple(Metadatum(key, value) for key, value in metadata or ())


class BlockingCallError(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[type-arg]  # at run time it takes none
    """A blocking call failed. `attempts` tells each try: endpoint, code, milliseconds.

    It is also the ended call, as grpc's own errors are: interceptors are handed it for one.
    """

    def __init__(self, error: CallError) -> None:
        super().__init__(str(error))
        self._error = error
        self.attempts: tuple[AttemptRecord, ...] = error.attempts
        self.unsent = error.unsent

    def __str__(self) -> str:
        return str(self._error)

    def code(self) -> grpc.StatusCode:
        """The code of the last attempt."""
        return self._error.code()

    def details(self) -> str:
        """The server's words, and the attempts where they help."""
        return self._error.details() or ""

    def debug_error_string(self) -> str:
        """What gRPC's core says for debugging."""
        return self._error.debug_error_string() or ""

    def initial_metadata(self) -> tuple[Metadatum, ...]:
        """First metadata of the answer."""
        return pairs(self._error.initial_metadata())

    def trailing_metadata(self) -> tuple[Metadatum, ...]:  # type: ignore[override]  # as above
        """Last metadata of the answer."""
        return pairs(self._error.trailing_metadata())

    def is_active(self) -> bool:
        """False: it has ended."""
        return False

    def time_remaining(self) -> float:
        """0: it has ended."""
        return 0.0

    def cancel(self) -> bool:
        """False: it has ended."""
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """False: it has ended, and `callback` is not called."""
        return False

    def result(self, timeout: float | None = None) -> Any:
        """Raise this error."""
        raise self

    def exception(self, timeout: float | None = None) -> Exception:
        """Return this error."""
        return self

    def traceback(self, timeout: float | None = None) -> Any:
        """Where this error was raised."""
        return self.__traceback__

    def cancelled(self) -> bool:
        """False: it failed by itself."""
        return False

    def running(self) -> bool:
        """False: it has ended."""
        return False

    def done(self) -> bool:
        """True: it has ended."""
        return True

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Call back at once."""
        fn(self)
