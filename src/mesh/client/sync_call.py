"""A call that a thread begins, in steps: what can happen to one that is not plain, or does not succeed at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from mesh.client.blocking_call import BlockingCall, response_of
from mesh.client.blocking_error import BlockingCallError
from mesh.client.call import UnaryUnaryCall
from mesh.client.ended import LOCALLY_CANCELLED
from mesh.client.roster import Picked, Slot
from mesh.client.sync_answer import AnsweredCall
from mesh.client.sync_attempt import ThreadAttempt
from mesh.client.thread import LoopThread
from mesh.resilience.outcome import Outcome

_CANCELLED = grpc.StatusCode.CANCELLED
# What an attempt may end with where its connection does not carry.
_OF_THE_ROAD = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# The loop looks again later where it is not sure of a status. A thread always is.
_NEVER = 1 << 30

Answer = tuple[Any, Any]
"""A response, and the call object if that was asked for."""


class ThreadCall(UnaryUnaryCall):
    """A call whose first attempt is made by a thread.

    Its course is the asyncio client's own (`mesh.client.attempts`), step by step under the loop's lock
    (`mesh.client.thread`); only the first attempt is another. Whatever comes after that, or instead of it, is handed
    over to the loop with all that has happened so far: further attempts, waiting for an endpoint, news of a broken
    connection.
    """

    _in_thread = True
    _looks = _NEVER
    _then: Callable[[], object] | None = None
    """What the loop is to do."""

    def __init__(self, thread: LoopThread) -> None:
        # The rest is what `begin` or `take_over` does, so that a call that is interrupted in there can be ended.
        self._thread = thread

    # -- in the thread

    def begin(self, arguments: tuple[Any, ...]) -> ThreadAttempt | None:
        """Begin, with the arguments of `Attempts`. Return the attempt that the thread is to make, if it is."""
        with self._thread.gate, self._thread.state:
            super().__init__(*arguments)
            return self._running if self._then is None else None

    def wait_for(self, attempt: ThreadAttempt, telling: bool) -> Any:
        """Make the attempt, take its result, and return the response, or None if it failed."""
        hop = self._hop
        if hop is not None:
            hop.on_cancel(self._cancel_from_afar)
        try:
            response = attempt.run(telling=telling or (self._balance is not None and self._balance.reads_reports))
        finally:
            if hop is not None:
                hop.forget(self._cancel_from_afar)
        with self._thread.gate, self._thread.state:
            attempt.finish()
        return response

    def interrupt(self) -> None:
        """End the call: its thread is not to wait any longer."""
        with self._thread.gate, self._thread.state:
            self._cancelling = True
            if isinstance(self._running, ThreadAttempt):
                self._running.finish()

    def take_over(self, arguments: tuple[Any, ...], started: float, deadline: float, payload: bytes) -> None:
        """Be a plain call that has come as far as its first pick (`mesh.client.sync`)."""
        self._method, self._request, _, self._metadata, self._credentials, *rest = arguments
        self._wait_for_ready, self._compression = rest
        self._started, self._deadline, self._payload = started, deadline, payload

    def take_result(self, picked: Picked, attempt: ThreadAttempt) -> None:
        """Judge the first attempt of a plain call, which did not succeed."""
        self._slot, self._permit = picked
        self._connection = attempt.connection
        self._attempt_started = self._started
        self._inner = self._running = attempt
        attempt.add_done_callback(self._attempt_done)
        with self._thread.gate, self._thread.state:
            attempt.finish()

    def give_up(self, picked: Picked, attempt: ThreadAttempt) -> None:
        """End with a first attempt that its thread did not wait for."""
        self._cancelling = True
        self.take_result(picked, attempt)

    def leave_to_the_loop(self, picked: Picked | None) -> None:
        """Have the loop make the first attempt, on what was picked, if anything was."""
        self._then = partial(self._launch_on_loop, picked) if picked is not None else self._drive

    def outcome(self, response: Any, attempt: ThreadAttempt | None, telling: bool) -> Answer:
        """Return the response and, if `telling`, the call object; wait for the loop if it has something to do."""
        if self._then is not None:
            further = BlockingCall(self._thread, self._go_on, None, unary=True)
            return response_of(further), further
        if self._error is not None:
            raise BlockingCallError(self._error) from None
        assert attempt is not None
        return response, AnsweredCall(response, attempt.call) if telling else None

    def _cancel_from_afar(self) -> None:
        self._thread.post(self._cancel_attempt)

    # -- on the loop

    def _cancel_attempt(self) -> None:
        """Its thread, which waits for the attempt, ends the call: with the answer, if that was faster."""
        if self._running is not None:
            self._cancelling = True
            self._running.cancel()

    def _go_on(self) -> ThreadCall:
        self._in_thread, self._looks, self._inner = False, 0, None
        then, self._then = self._then, None
        if then is not None:
            then()
        return self

    def _launch_on_loop(self, picked: Picked) -> None:
        now = self._method.monotonic()
        slot, permit = picked
        if slot.connection.is_closing:
            permit.record(Outcome.NEUTRAL, now)
            self._drive()
        else:
            self._launch(picked, now)

    # -- steps of `Attempts`, in the one or on the other

    def _launch(self, picked: Picked, now: float) -> Any:
        if self._in_thread:
            connection = picked[0].connection
            twins = connection.twins_of(self._thread)
            if twins.ready is None:
                if not connection.is_closing:
                    twins.want()
                self.leave_to_the_loop(picked)
                return None
        return super()._launch(picked, now)

    def _begin(self, slot: Slot, timeout: float, metadata: Any) -> Any:
        if not self._in_thread:
            return super()._begin(slot, timeout, metadata)
        attempt = ThreadAttempt(slot.connection, slot.connection.twins.ready)
        attempt.prepare(
            self._method,
            (self._payload, timeout, metadata, self._credentials, None, self._compression),
            cancellable=self._hop is not None,
        )
        return attempt

    def _attempt_failed(self, inner: Any, code: grpc.StatusCode, now: float) -> None:
        if self._in_thread and code in _OF_THE_ROAD:
            inner.doubt()
            self._then = partial(self._attempt_failed, inner, code, now)
        else:
            super()._attempt_failed(inner, code, now)

    def _drive(self) -> None:
        if self._in_thread:
            self._then = self._drive
        elif self._code is not None:
            return
        elif self._method.pool.closed:
            self._cancelling = True
            self._end_locally(_CANCELLED, LOCALLY_CANCELLED)
        else:
            super()._drive()
