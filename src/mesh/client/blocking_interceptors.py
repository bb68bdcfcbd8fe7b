"""Retry and breaker as ordinary interceptors of a plain blocking channel, with the decisions of the asyncio ones.

    channel = grpc.intercept_channel(plain, mesh.blocking.RetryInterceptor(), mesh.blocking.BreakerInterceptor())

Calls with one request are retried, those with a stream of responses before its first message; calls with a stream of
requests are left as they are. A retried call blocks the thread that made it, `future()` included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import grpc

from mesh.client.blocking_error import BlockingCallError
from mesh.client.errors import not_let_through
from mesh.client.judging import Policies, failure_of, is_repeatable, verdict_of
from mesh.client.retrying import AttemptFailed, attempt_again_blocking
from mesh.clock import Clock, Dice
from mesh.policy import BreakerPolicy, BudgetPolicy, MethodPolicy
from mesh.resilience.breaker import Breaker
from mesh.resilience.budget import Budget
from mesh.resilience.hops import CURRENT, Hop, attempts_allowed, deadline_of, entries_of
from mesh.resilience.outcome import Outcome
from mesh.resilience.retry import Retries, Stop
from mesh.wallclock import CLOCK, DICE


class RetryInterceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Tries again what is safe to try again, by the policy of the method's contract (gRFC A6 and a budget)."""

    def __init__(
        self,
        policies: Mapping[str, MethodPolicy] | None = None,
        *,
        budget: BudgetPolicy | None = None,
        clock: Clock = CLOCK,
        dice: Dice = DICE,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """policies: by path ("/users.v1.UserService/GetUser"), over those of the contract."""
        self._policies = Policies(policies)
        self._budget = Budget(budget or BudgetPolicy(), clock.monotonic())
        self._lock = threading.Lock()
        self._clock = clock
        self._dice = dice
        self._sleep = sleep if sleep is not None else _wait

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Make the call, as often as it takes."""
        course = self._begin(client_call_details, request, answers_once=True)

        def attempt() -> Any:
            call = continuation(course.details(), request)
            if call.code() is grpc.StatusCode.OK:
                return call
            raise course.failed(call)

        return self._from_the_second(attempt)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Make the call, as often as it takes until a first response is there."""
        course = self._begin(client_call_details, request, answers_once=False)

        def attempt() -> Any:
            call = continuation(course.details(), request)
            try:
                return _Begun(call, [next(call)])
            except StopIteration:
                return _Begun(call, [])
            except grpc.RpcError:
                raise course.failed(call) from None

        return self._from_the_second(attempt)

    def _from_the_second(self, attempt: Callable[[], Any]) -> Any:
        try:
            return attempt()
        except _Failed as failed:
            if isinstance(failed.pause, Stop):
                return failed.call
            first = failed
        try:
            return attempt_again_blocking(attempt, first, self._sleep)
        except _Failed as failed:
            return failed.call

    def _begin(self, details: Any, request: Any, *, answers_once: bool) -> _Course:
        policy, now = self._policies.of(details.method), self._clock.monotonic()
        with self._lock:
            self._budget.deposit(now)
        hop, attempts = CURRENT.get(), policy.retry.max_attempts
        repeatable, allowed = is_repeatable(policy, request), attempts_allowed(hop, attempts)
        retries = Retries(policy, self._budget, repeatable=repeatable, allowed=allowed)
        limit = policy.retry.attempt_timeout if answers_once and repeatable else 0.0
        return _Course(details, now, retries, hop, attempts, limit or inf, self)


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


class _Failed(AttemptFailed):
    """An attempt of a plain channel failed; `call` is it."""

    def __init__(self, pause: float | Stop, call: Any) -> None:
        super().__init__(pause)
        self.call = call


class _Begun:
    """A stream of responses whose first one was read already; in everything else the call itself."""

    def __init__(self, call: Any, read: list[Any]) -> None:
        self._call = call
        self._read = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __iter__(self) -> _Begun:
        return self

    def __next__(self) -> Any:
        return self._read.pop() if self._read else next(self._call)


class _Course:
    """One call through the retry interceptor: its deadline and its retries."""

    def __init__(
        self,
        details: Any,
        now: float,
        retries: Retries,
        hop: Hop | None,
        attempts: int,
        limit: float,
        shared: RetryInterceptor,
    ) -> None:
        """limit: seconds of one attempt."""
        self._details = details
        self._deadline = deadline_of(hop, now, details.timeout)
        self._retries = retries
        self._hop = hop
        self._attempts = attempts
        self._limit = limit
        self._shared = shared

    def details(self) -> Any:
        """Return the call details of the next attempt: with the time that is left, and the count of those before."""
        given = self._details
        left = min(self._deadline - self._shared._clock.monotonic(), self._limit)
        entries = entries_of(self._hop, self._attempts, self._retries.attempts - 1)
        metadata = (*entries, *(given.metadata or ())) if entries else given.metadata
        return _Details(given, max(0.0, left) if left < inf else None, metadata)

    def failed(self, call: Any) -> _Failed:
        """Decide about an attempt that failed."""
        shared, now = self._shared, self._shared._clock.monotonic()
        code = call.code()
        # Whatever time is left of the call's, it was the attempt's own that was over.
        timed_out = code is grpc.StatusCode.DEADLINE_EXCEEDED and self._limit < inf and now < self._deadline
        failure = failure_of(
            code.name,
            call.trailing_metadata() or (),
            # Else what it says of itself may be the server's words, and a plain channel knows no more.
            unsent=isinstance(call, BlockingCallError) and call.unsent,
            committed=len(call.initial_metadata() or ()) > 0,
            timed_out=timed_out,
        )
        if call.cancelled() if hasattr(call, "cancelled") else False:
            return _Failed(Stop.CODE, call)
        with shared._lock:
            decision = self._retries.after(failure, now, shared._dice.random(), self._deadline - now)
        if isinstance(decision, Stop) and self._hop is not None:
            self._hop.failed(failure, decision)
        return _Failed(decision, call)


class _Details(grpc.ClientCallDetails):
    """Call details with another timeout and metadata."""

    def __init__(self, given: Any, timeout: float | None, metadata: Any) -> None:
        self.method = given.method
        self.timeout = timeout
        self.metadata = metadata
        self.credentials = given.credentials
        self.wait_for_ready = getattr(given, "wait_for_ready", None)
        self.compression = getattr(given, "compression", None)


class BreakerInterceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Leaves a target alone for a while that fails too often: calls then end as UNAVAILABLE at once."""

    def __init__(self, policy: BreakerPolicy | None = None, *, clock: Clock = CLOCK, dice: Dice = DICE) -> None:
        self.breaker = Breaker(policy or BreakerPolicy())
        self._lock = threading.Lock()
        self._clock = clock
        self._dice = dice

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Make the call, if the breaker lets it."""
        return self._make(continuation, client_call_details, request, kind=str(client_call_details.method))

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Make the call, if the breaker lets it."""
        return self._make(continuation, client_call_details, request)

    def _make(self, continuation: Any, details: Any, request: Any, kind: str | None = None) -> Any:
        started = self._clock.monotonic()
        with self._lock:
            permit = self.breaker.acquire(started)
        if permit is None:
            raise BlockingCallError(not_let_through())

        def record(code: str | None) -> None:
            with self._lock:
                now = self._clock.monotonic()
                took = now - started
                outcome = verdict_of(code, took) if code is not None else Outcome.NEUTRAL
                permit.record(outcome, now, self._dice.random(), took, kind)

        try:
            call = continuation(details, request)
        except BaseException:
            record(None)
            raise
        if hasattr(call, "add_done_callback"):
            call.add_done_callback(lambda ended: record(ended.code().name))
        else:
            record(call.code().name)
        return call
