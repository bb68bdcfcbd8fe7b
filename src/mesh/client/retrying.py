"""Attempts after the first, made with tenacity. The one file that knows it.

The first attempt runs bare (tenacity around a call that succeeds costs a tenth of the call); once it failed, the loop
here starts, and is told of that failure as if it had made the attempt. tenacity is imported then: a process that has
not met a failure does not need it to make its first call. What it does is decided by
`mesh.resilience.retry`: each failure brings the pause before the next attempt, or the reason why there is none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from mesh.resilience.retry import Stop

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")


class AttemptFailed(Exception):
    """An attempt failed. `pause`: seconds until the next one, or why there is none."""

    def __init__(self, pause: float | Stop) -> None:
        super().__init__(pause)
        self.pause = pause


def _wants_another(error: BaseException) -> bool:
    return isinstance(error, AttemptFailed) and not isinstance(error.pause, Stop)


def _pause(state: RetryCallState) -> float:
    failed = state.outcome.exception() if state.outcome else None
    assert isinstance(failed, AttemptFailed)
    assert not isinstance(failed.pause, Stop)
    return failed.pause


async def attempt_again(
    attempt: Callable[[], Awaitable[T]], first: AttemptFailed | None, sleep: Callable[[float], Awaitable[None]]
) -> T:
    """Await `attempt` until it succeeds or a failure asks for no more; `first` is the failure already suffered, if any.

    Raises the last failure.
    """
    if first is None:
        try:
            return await attempt()
        except AttemptFailed as e:
            first = e
    suffered = [first]

    async def next_attempt() -> T:
        if suffered:
            raise suffered.pop()
        return await attempt()

    from tenacity import AsyncRetrying, retry_if_exception, stop_never

    retry = retry_if_exception(_wants_another)
    return await AsyncRetrying(sleep=sleep, wait=_pause, retry=retry, stop=stop_never, reraise=True)(next_attempt)


def attempt_again_blocking(attempt: Callable[[], T], first: AttemptFailed | None, sleep: Callable[[float], None]) -> T:
    """Do the same in a thread."""
    if first is None:
        try:
            return attempt()
        except AttemptFailed as e:
            first = e
    suffered = [first]

    def next_attempt() -> T:
        if suffered:
            raise suffered.pop()
        return attempt()

    from tenacity import Retrying, retry_if_exception, stop_never

    retry = retry_if_exception(_wants_another)
    return Retrying(sleep=sleep, wait=_pause, retry=retry, stop=stop_never, reraise=True)(next_attempt)
