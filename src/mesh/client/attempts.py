"""The attempts of one call, from its deadline to its end. What calls of all four kinds have in common, inside.

The first attempt starts while the call object is made, if an endpoint is connected; a call that succeeds at once
costs no task of its own. When an attempt ends, `_attempt_done` (a plain function, called by grpc) decides: the end
of the call, or a driver task that pauses and makes the next attempt. The driver is also what waits where nothing is
connected yet.

A call is in one of three states:
  in flight   `_inner` is the present attempt, `_driver` is None
  driven      `_driver` is at work: it pauses, waits for an endpoint, or (unary) awaits its own attempt
  ended       `_code` is set, and `_error` too unless it is OK (`course`)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from mesh.client.connection import Connection
from mesh.client.course import Course
from mesh.client.ended import LOCALLY_CANCELLED, WRITE_FAILED, code_of, peek, was_cancelled_here
from mesh.client.errors import CallError, metadata_fault, tell
from mesh.client.judging import PATIENCE, failure_of, is_repeatable
from mesh.client.method import Method
from mesh.client.pool import MAX_TIMEOUT
from mesh.client.retrying import AttemptFailed, attempt_again
from mesh.client.roster import Picked, Slot
from mesh.instance import AttemptRecord
from mesh.resilience.breaker import Permit
from mesh.resilience.hops import CURRENT, Hop, attempts_allowed, entries_of
from mesh.resilience.outcome import Outcome, outcome_of, was_surely_not_processed
from mesh.resilience.retry import Failure, Retries, Stop
from mesh.telemetry import metrics, tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from mesh.client.balance import Balance

# By names of our own: Python looks a member of an enumeration up at the price of a call.
_OK = grpc.StatusCode.OK
_CANCELLED = grpc.StatusCode.CANCELLED
_INTERNAL = grpc.StatusCode.INTERNAL
_READY = grpc.ChannelConnectivity.READY
_SUCCESS = Outcome.SUCCESS
# What an attempt may end with though nothing came from its endpoint.
_OF_THE_ROAD = frozenset({"UNAVAILABLE", "CANCELLED"})
# A write that failed is the news of an end whose status grpc.aio is about to read and does not call back with. Looking
# again after 1, 2, … ms makes 200 ms in all; it mostly takes one look.
_LOOKS = 20
_TOO_LATE = "the deadline was over before the call began"
_OUTLIVED = "the call that this one is made for is out of time: what outlives its answer is begun under mesh.detached()"


class Ended(Exception):
    """The driver found that the call has ended; `_code` and `_error` say how."""


class Attempts(Course):
    """The attempts of one call. Its face is `mesh.client.call`."""

    # Defaults live on the class, as in `Course`.
    _looks = 0
    _driver: asyncio.Task[Any] | None = None
    _failure: AttemptFailed | None = None
    _retries: Retries | None = None
    _committed = False
    _is_bounded = False
    """Whether the present attempt has a time of its own."""
    _tried: tuple[Slot, ...] = ()
    _hop: Hop | None = None
    """The incoming call that this one is made for."""
    _attempt_span: Span
    _slot: Slot
    _connection: Connection
    _permit: Permit
    _balance: Balance | None = None
    """What chose the attempt's endpoint, other than the roster."""
    _attempt_started = 0.0
    _payload = b""

    def __init__(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> None:
        self._method = method
        self._request = request
        self._metadata = metadata
        self._credentials = credentials
        self._wait_for_ready = wait_for_ready
        self._compression = compression
        # Every call asks for these, and Python finds them on an object sooner than on its class.
        self._code = self._callbacks = self._movement = self._span = self._driver = self._balance = self._hop = None
        self._tried = ()
        pool = method.pool
        self._started = now = method.monotonic()
        # Most calls name a sane deadline or none.
        allowed = timeout if timeout is not None and 0 < timeout < MAX_TIMEOUT else method.timeout(timeout)
        self._deadline = now + allowed
        hop = CURRENT.get()
        if hop is not None:
            self._hop = hop
            if hop.deadline < self._deadline:
                self._deadline, allowed = hop.deadline, hop.deadline - now
        pool.budget.deposit(now)
        fault = metadata_fault(metadata) if metadata is not None else None
        if tracing.enabled():
            given = metadata if fault is None else None
            self._span, self._metadata = tracing.begin_call(method.service, method.name, given)
        if allowed <= 0:
            late = _TOO_LATE if hop is None or hop.deadline > now else _OUTLIVED
            self._end_locally(grpc.StatusCode.DEADLINE_EXCEEDED, late)
            return
        if fault is not None:
            self._end_locally(grpc.StatusCode.INVALID_ARGUMENT, fault)
            return
        if method.sends_one:
            try:
                self._payload = method.serialize(request)
            except Exception as e:
                self._end_locally(grpc.StatusCode.INTERNAL, f"the request cannot be serialized: {e}")
                return
        picked = pool.pick(now) if pool.balance is None else self._choose(pool.balance, now)
        if picked is None:
            self._drive()
        else:
            self._launch(picked, now)

    def _begin(self, slot: Slot, timeout: float, metadata: Any) -> Any:
        """Make the attempt: return grpc's call object on the slot's connection."""
        raise NotImplementedError

    def _launch(self, picked: Picked, now: float) -> Any:
        self._slot, self._permit = slot, permit = picked
        self._attempt_started = now
        metadata = self._metadata
        if self._tried or self._hop is not None:
            metadata = self._add_entries(metadata)
        if self._span is not None:
            metadata = self._trace_attempt(slot, metadata)
        left = self._deadline - now
        if left > self._method.attempt_timeout:
            left = self._bounded(left)
        try:
            self._inner = inner = self._begin(slot, left, metadata)
        except BaseException:
            permit.record(Outcome.NEUTRAL, now)
            raise
        self._running = inner
        self._connection = connection = slot.connection
        connection.in_flight += 1
        inner.add_done_callback(self._listener())
        if self._balance is not None and self._balance.reads_reports:
            self._balance.launched(slot, inner, self._method.monotonic)
        if self._movement is not None:
            self._moved()
        return inner

    def _listener(self) -> Callable[[Any], None]:
        """Return what hears of an attempt's end. A unary call makes its way though nobody holds it."""
        return self._attempt_done

    def _attempt_done(self, inner: Any) -> None:
        """Take an attempt's result: record it, and end the call or have it driven on."""
        if inner is not self._running:
            return
        code = code_of(inner)
        if code is _INTERNAL and peek(inner.details()) == WRITE_FAILED and self._looks < _LOOKS:
            self._looks += 1
            asyncio.get_running_loop().call_later(0.001 * self._looks, self._attempt_done, inner)
            return
        self._running = None
        self._connection.call_ended()
        now = self._method.monotonic()
        if code is _OK:
            self._connection.answered += 1
            self._permit.record(_SUCCESS, now, 0.5, now - self._attempt_started, self._method.timed)
            if self._span is not None:
                tracing.end(self._attempt_span, "OK")
            self._end(_OK, now)
            return
        self._attempt_failed(inner, code, now)

    def _attempt_failed(self, inner: Any, code: grpc.StatusCode, now: float) -> None:
        details, trailing = peek(inner.details()) or "", peek(inner.trailing_metadata()) or aio.Metadata()
        initial, debug = peek(inner.initial_metadata()) or aio.Metadata(), peek(inner.debug_error_string()) or ""
        ours = was_cancelled_here(code.name, details)
        if ours and self._was_cut():
            ours, code, details = False, grpc.StatusCode.UNAVAILABLE, "the instance has left"
        self._account(code.name, details, now)
        if self._code is not None:
            return
        if code is grpc.StatusCode.UNAVAILABLE:
            self._connection.call_failed()
        decision: float | Stop | None = Stop.CODE
        if not ours:
            committed = self._committed or len(initial) > 0
            unsent = not trailing and was_surely_not_processed(code.name, details, self._unconnected())
            failure = failure_of(
                code.name, trailing, unsent=unsent, committed=committed, timed_out=self._timed_out(code, now)
            )
            decision = self._decide(failure, now)
        if isinstance(decision, Stop):
            self._error = CallError(code, initial, trailing, tell(code, details, self.attempts, trailing), debug)
            self._error.attempts = self.attempts
            self._end(code, now)
        else:
            self._continue(decision, now)

    def _continue(self, pause: float | None, now: float) -> None:
        """Go on without the attempt that failed: make another after a pause."""
        assert pause is not None
        self._failure = AttemptFailed(pause)
        if self._movement is not None:
            self._moved()
        if self._driver is None:
            self._drive()

    def _unconnected(self) -> str | None:
        """Return the attempt's endpoint, if there is no connection to it."""
        return None if self._connection.channel.get_state() is _READY else self._slot.name

    def _was_cut(self) -> bool:
        """Whether it was the pool that cancelled the attempt, while it lives on: its instance is gone."""
        return self._connection.is_cut and not self._cancelling and not self._method.pool.closed

    def _account(self, code: str, details: str, now: float) -> None:
        outcome = outcome_of(code)
        hasty = now - self._attempt_started < PATIENCE and not self._is_bounded
        if code == "DEADLINE_EXCEEDED":
            if self._committed or hasty:
                outcome = Outcome.NEUTRAL
            else:
                self._connection.given_up += 1
        elif code not in _OF_THE_ROAD:
            self._connection.answered += 1
        if code == "RESOURCE_EXHAUSTED" and self._balance is not None:
            from mesh.client.balance import Ride  # loaded already, by whoever has a balance

            if isinstance(self._permit, Ride):
                self._permit.refused = True
        took = now - self._attempt_started
        # An error that is an answer (NOT_FOUND) says nothing of how long good calls take.
        kind = self._method.timed if outcome is not Outcome.SUCCESS else None
        self._permit.record(outcome, now, self._method.pool.dice.random(), took, kind)
        self._method.attempts(code).inc()
        self.attempts += (AttemptRecord(self._slot.name, code, took * 1000, details),)
        if self._span is not None:
            tracing.end(self._attempt_span, code)

    def _bounded(self, left: float) -> float:
        """Return the seconds of an attempt that has a time of its own, if it may be repeated when that is over."""
        self._is_bounded = is_repeatable(self._method.policy, self._request)
        return self._method.attempt_timeout if self._is_bounded else left

    def _timed_out(self, code: grpc.StatusCode, now: float) -> bool:
        """Whether it was the attempt's own time that was over."""
        return self._is_bounded and code is grpc.StatusCode.DEADLINE_EXCEEDED and now < self._deadline

    def _decide(self, failure: Failure, now: float) -> float | Stop | None:
        method = self._method
        if self._retries is None:
            repeatable = is_repeatable(method.policy, self._request)
            allowed = attempts_allowed(self._hop, method.policy.retry.max_attempts)
            self._retries = Retries(method.policy, method.pool.budget, repeatable=repeatable, allowed=allowed)
        self._tried += (self._slot,)
        decision = self._retries.after(failure, now, method.pool.dice.random(), self._deadline - now)
        if isinstance(decision, Stop):
            self._tell_stop(failure, decision)
        return decision

    def _tell_stop(self, failure: Failure, stop: Stop) -> None:
        if self._hop is not None:
            self._hop.failed(failure, stop)
        if stop is not Stop.CODE:
            metrics.CLIENT_RETRIES_REFUSED.labels(self._method.service, stop.value).inc()

    def _add_entries(self, metadata: Any) -> Any:
        """Add what the next hop is to know: attempts before and attempts left. The caller's own come last and win."""
        spent = self._retries.attempts - 1 if self._retries is not None else 0
        entries = entries_of(self._hop, self._method.policy.retry.max_attempts, spent)
        return [*entries, *(metadata or ())] if entries else metadata

    def _trace_attempt(self, slot: Slot, metadata: Any) -> Any:
        assert self._span is not None
        method, number = self._method, len(self._tried) + 1
        self._attempt_span = tracing.start_attempt(self._span, method.service, method.name, slot.name, number)
        return tracing.inject(self._attempt_span, metadata or ())

    def _next_attempt(self) -> Coroutine[Any, Any, Any]:
        """Make one further attempt, raising AttemptFailed if it failed and Ended if the call did."""
        raise NotImplementedError

    def _drive(self) -> None:
        pool = self._method.pool
        self._driver = pool.spawn(self._run_driver())
        self._driver.add_done_callback(self._driver_done)

    async def _run_driver(self) -> Any:
        failure, self._failure = self._failure, None
        try:
            return await attempt_again(self._next_attempt, failure, self._method.pool.clock.sleep)
        except (Ended, AttemptFailed):
            return aio.EOF
        except Exception as e:
            self._refused(e)
            return aio.EOF

    def _driver_done(self, driver: asyncio.Task[Any]) -> None:
        # Cancelled, perhaps before its first step: by whoever awaited it, or by the closing pool.
        if driver.cancelled():
            self._cancelling = True
            if self._inner is not None and not self._inner.done():
                self._inner.cancel()
            if self._code is None:
                self._end_locally(_CANCELLED, LOCALLY_CANCELLED)

    async def _pick(self) -> tuple[Picked, float]:
        """Choose an endpoint, waiting for one if need be and allowed; raise Ended if there will be none."""
        pool, tried = self._method.pool, self._tried
        while True:
            now = self._method.monotonic()
            left = self._deadline - now
            if left <= 0:
                self._end_locally(grpc.StatusCode.DEADLINE_EXCEEDED, self._why_too_late())
                raise Ended
            picked = pool.pick(now, tried) if pool.balance is None else self._choose(pool.balance, now)
            if picked is not None:
                return picked, now
            if pool.roster.is_forced_open or (self._wait_for_ready is False and pool.is_hopeless):
                self._end_locally(grpc.StatusCode.UNAVAILABLE, pool.complaint)
                raise Ended
            await pool.changed(left)

    def _choose(self, balance: Balance, now: float) -> Picked | None:
        self._balance = balance
        return balance.pick(now, self._tried, self._method, self._request, self._metadata)

    def _why_too_late(self) -> str:
        pool = self._method.pool
        return pool.complaint if not pool.roster.pickable else "the deadline was over before another attempt"
