"""Retry and breaker as ordinary grpc.aio interceptors, for a plain channel to one target.

    retry, breaker = mesh.RetryInterceptor(), mesh.BreakerInterceptor()
    aio.insecure_channel(target, interceptors=[retry, retry.streams, breaker, breaker.streams])

Retry comes before breaker: each attempt then asks the breaker. grpc.aio sorts an interceptor into one kind of call
only, so `.streams` is the same thing for calls with a stream of responses. Calls with a stream of requests are left
as they are: their requests are gone once sent (a mesh channel keeps them). Between retries the target is all there
is; where a service has several instances, `mesh.connect` is the better tool. Switch gRPC's own retries off
("grpc.enable_retries", 0).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from math import inf
from typing import Any

import grpc
from grpc import aio

from mesh.client.ended import peek, was_cancelled_here
from mesh.client.errors import not_let_through
from mesh.client.judging import Policies, failure_of, is_repeatable, verdict_of
from mesh.client.retrying import AttemptFailed, attempt_again
from mesh.clock import Clock, Dice
from mesh.policy import BreakerPolicy, BudgetPolicy, MethodPolicy
from mesh.resilience.breaker import Breaker, Permit
from mesh.resilience.budget import Budget
from mesh.resilience.hops import CURRENT, Hop, attempts_allowed, deadline_of, entries_of
from mesh.resilience.outcome import Outcome
from mesh.resilience.retry import Retries, Stop
from mesh.wallclock import CLOCK, DICE


class RetryInterceptor(aio.UnaryUnaryClientInterceptor):
    """Tries again what is safe to try again, by the policy of the method's contract (gRFC A6 and a budget)."""

    def __init__(
        self,
        policies: Mapping[str, MethodPolicy] | None = None,
        *,
        budget: BudgetPolicy | None = None,
        clock: Clock = CLOCK,
        dice: Dice = DICE,
    ) -> None:
        """policies: by path ("/users.v1.UserService/GetUser"), over those of the contract."""
        self._policies = Policies(policies)
        self._budget = Budget(budget or BudgetPolicy(), clock.monotonic())
        self._clock = clock
        self._dice = dice

    @property
    def streams(self) -> aio.UnaryStreamClientInterceptor:
        """The same for calls with a stream of responses, sharing the budget. They are retried before the first
        response.
        """
        return _RetryStreams(self)

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Make the call, as often as it takes."""
        course = self._begin(client_call_details, request, answers_once=True)

        async def attempt() -> Any:
            call = await course.start(continuation, request)
            code = await call.code()
            if code is grpc.StatusCode.OK or was_cancelled_here(code.name, await call.details() or ""):
                return call
            raise await course.failed(call)

        try:
            return await _from_the_second(attempt, self._clock)
        except _Failed as failed:
            return failed.outcome()

    def _begin(self, details: Any, request: Any, *, answers_once: bool) -> _Course:
        method = details.method if isinstance(details.method, str) else details.method.decode()
        policy, now = self._policies.of(method), self._clock.monotonic()
        self._budget.deposit(now)
        hop, attempts = CURRENT.get(), policy.retry.max_attempts
        repeatable, allowed = is_repeatable(policy, request), attempts_allowed(hop, attempts)
        retries = Retries(policy, self._budget, repeatable=repeatable, allowed=allowed)
        limit = policy.retry.attempt_timeout if answers_once and repeatable else 0.0
        return _Course(details, now, retries, hop, attempts, limit or inf, self._clock, self._dice)


class _RetryStreams(aio.UnaryStreamClientInterceptor):
    def __init__(self, shared: RetryInterceptor) -> None:
        self._shared = shared

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        course = self._shared._begin(client_call_details, request, answers_once=False)

        async def attempt() -> Any:
            call = await course.start(continuation, request)
            try:
                return call, await call.read()
            except aio.AioRpcError:
                raise await course.failed(call) from None

        try:
            return _rest(*await _from_the_second(attempt, self._shared._clock))
        except _Failed as failed:
            return failed.outcome()


async def _from_the_second(attempt: Callable[[], Awaitable[Any]], clock: Clock) -> Any:
    """Make the first attempt bare, and the loop only if it failed and another is wanted."""
    try:
        return await attempt()
    except _Failed as failed:
        if isinstance(failed.pause, Stop):
            raise
        first = failed
    return await attempt_again(attempt, first, clock.sleep)


async def _rest(call: Any, message: Any) -> AsyncIterator[Any]:
    while message is not aio.EOF:
        yield message
        message = await call.read()


class _Failed(AttemptFailed):
    """An attempt of a plain channel failed: the call, or the error where there was not even a call."""

    def __init__(self, pause: float | Stop, failure: Any) -> None:
        super().__init__(pause)
        self._failure = failure

    def outcome(self) -> Any:
        """Return the call, or raise the error."""
        if isinstance(self._failure, aio.AioRpcError):
            raise self._failure
        return self._failure


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
        clock: Clock,
        dice: Dice,
    ) -> None:
        """limit: seconds of one attempt."""
        self._details = details
        self._deadline = deadline_of(hop, now, details.timeout)
        self._retries = retries
        self._hop = hop
        self._attempts = attempts
        self._limit = limit
        self._clock = clock
        self._dice = dice

    def details(self) -> Any:
        """Return the call details of the next attempt: with the time that is left, and the count of those before."""
        details = self._details
        left = min(self._deadline - self._clock.monotonic(), self._limit)
        if left < inf:
            details = details._replace(timeout=max(0.0, left))
        entries = entries_of(self._hop, self._attempts, self._retries.attempts - 1)
        if entries:
            details = details._replace(metadata=aio.Metadata(*entries, *(details.metadata or ())))
        return details

    async def start(self, continuation: Any, request: Any) -> Any:
        """Start an attempt. An interceptor below may refuse it: the breaker does."""
        try:
            return await continuation(self.details(), request)
        except aio.AioRpcError as error:
            unsent = getattr(error, "unsent", False)
            raise _Failed(self._decide(error.code(), (), unsent=unsent, committed=False), error) from None

    async def failed(self, call: Any) -> _Failed:
        """Decide about an attempt that failed."""
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata() or ()
        # What it says of itself may be the server's words, and a plain channel knows no more.
        decision = self._decide(await call.code(), trailing, unsent=False, committed=bool(len(initial or ())))
        return _Failed(decision, call)

    def _decide(self, code: grpc.StatusCode, trailing: Any, *, unsent: bool, committed: bool) -> float | Stop:
        now = self._clock.monotonic()
        # Whatever time is left of the call's, it was the attempt's own that was over.
        timed_out = code is grpc.StatusCode.DEADLINE_EXCEEDED and self._limit < inf and now < self._deadline
        failure = failure_of(code.name, trailing, unsent=unsent, committed=committed, timed_out=timed_out)
        decision = self._retries.after(failure, now, self._dice.random(), self._deadline - now)
        if isinstance(decision, Stop) and self._hop is not None:
            self._hop.failed(failure, decision)
        return decision


class BreakerInterceptor(aio.UnaryUnaryClientInterceptor):
    """Leaves a target alone for a while that fails too often: calls then end as UNAVAILABLE at once."""

    def __init__(self, policy: BreakerPolicy | None = None, *, clock: Clock = CLOCK, dice: Dice = DICE) -> None:
        self.breaker = Breaker(policy or BreakerPolicy())
        self._clock = clock
        self._dice = dice

    @property
    def streams(self) -> aio.UnaryStreamClientInterceptor:
        """The same for calls with a stream of responses, with the same breaker."""
        return _BreakerStreams(self)

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Make the call, if the breaker lets it."""
        return await self._make(continuation, client_call_details, request, kind=str(client_call_details.method))

    async def _make(self, continuation: Any, details: Any, request: Any, kind: str | None = None) -> Any:
        started = self._clock.monotonic()
        permit = self.breaker.acquire(started)
        if permit is None:
            raise not_let_through()
        try:
            call = await continuation(details, request)
        except BaseException:
            permit.record(Outcome.NEUTRAL, self._clock.monotonic())
            raise
        call.add_done_callback(lambda ended: self._ended(permit, ended, started, kind))
        return call

    def _ended(self, permit: Permit, call: Any, started: float, kind: str | None) -> None:
        code, now = peek(call.code()), self._clock.monotonic()
        took = now - started
        permit.record(verdict_of(code.name, took), now, self._dice.random(), took, kind)


class _BreakerStreams(aio.UnaryStreamClientInterceptor):
    def __init__(self, shared: BreakerInterceptor) -> None:
        self._shared = shared

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._shared._make(continuation, client_call_details, request)
