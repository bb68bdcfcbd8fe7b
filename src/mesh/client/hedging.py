"""Calls with attempts beside those that take long: unary calls of methods whose policy asks for hedging and whose
requests may be sent twice. What is decided is `mesh.resilience.hedge`.

The first attempt goes the way of any call's (`attempts`): what it costs more is a place in a queue. All calls of a
method wait about the same delay for their hedge, so one timer per method looks after them, and most have ended when it
looks (`pacer`).

A call has one present attempt, as any call; the others are put aside, whole, and taken back when they have news. So
whatever the course of a call does with an attempt that ended, it does with each of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from math import inf
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from mesh.client.call import UnaryUnaryCall
from mesh.client.connection import Connection
from mesh.client.pacer import Pacer
from mesh.client.roster import Picked, Slot
from mesh.instance import AttemptRecord
from mesh.resilience.breaker import Permit
from mesh.resilience.hedge import Hedges
from mesh.resilience.hops import attempts_allowed, entries_of
from mesh.resilience.outcome import Outcome
from mesh.resilience.retry import Failure, Stop
from mesh.telemetry import metrics, tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_OK = grpc.StatusCode.OK
_LOST = "another attempt was answered first"


class _Attempt:
    """One of several attempts, put aside."""

    __slots__ = ("connection", "inner", "permit", "slot", "span", "started")

    def __init__(self, call: HedgedCall) -> None:
        self.inner: Any = call._inner
        self.slot: Slot = call._slot
        self.permit: Permit = call._permit
        self.connection: Connection = call._connection
        self.started: float = call._attempt_started
        self.span: Span | None = call._attempt_span if call._span is not None else None


class HedgedCall(UnaryUnaryCall):
    """A request, a response, and perhaps several attempts at once."""

    due = 0.0
    """When the next hedge is."""
    _hedges: Hedges | None = None
    _others: tuple[_Attempt, ...] = ()
    """Attempts under way beside the present one."""

    @property
    def _pacer(self) -> Pacer:
        pacer = self._method.pacer
        assert pacer is not None
        return pacer

    # -- attempts begin

    def _launch(self, picked: Picked, now: float) -> Any:
        inner = super()._launch(picked, now)
        self._tried += (picked[0],)
        if self._hedges is None or self._hedges.has_more:
            self._pacer.watch(self, now)
        return inner

    def hedge(self, now: float) -> None:
        """Make another attempt beside those under way, if that is still wanted, paid for, and there is somewhere else
        to go; otherwise ask again later.
        """
        if self._code is not None or self._running is None:
            return
        others = set(self._method.pool.roster.pickable).difference(self._tried)
        picked = self._pick_now(now) if others else None
        # Where breakers keep calls from all others, it would be one that has an attempt already.
        if picked is not None and picked[0] not in self._tried and self._course().hedge(now):
            metrics.CLIENT_HEDGES.labels(self._method.service, self._method.name).inc()
            self._launch_beside(picked, now)
            return
        if picked is not None:
            picked[1].record(Outcome.NEUTRAL, now)
        if self._course().has_more:
            self._pacer.watch(self, now, again=True)

    def _course(self) -> Hedges:
        if self._hedges is None:
            method, hop = self._method, self._hop
            policy = method.policy.hedging
            allowed = attempts_allowed(hop, policy.max_attempts)
            self._hedges = Hedges(policy, method.pool.budget, allowed=allowed)
        return self._hedges

    def _replace(self, now: float) -> None:
        """Make an attempt that was decided, beside whatever is under way, or wait for an endpoint to make it at."""
        if self._code is not None:
            return
        picked = self._pick_now(now)
        if picked is not None:
            self._launch_beside(picked, now)
        elif self._driver is None:
            self._drive()

    def _pick_now(self, now: float) -> Picked | None:
        pool = self._method.pool
        return pool.pick(now, self._tried) if pool.balance is None else self._choose(pool.balance, now)

    def _launch_beside(self, picked: Picked, now: float) -> None:
        self._put_aside()
        try:
            self._launch(picked, now)
        except Exception as e:  # what grpc.aio raises here is no RpcError, and nobody is there to hear it
            self._refused(e)

    async def _next_attempt(self) -> Any:
        picked, now = await self._pick()
        self._put_aside()
        self._launch(picked, now)
        return aio.EOF

    async def _run_driver(self) -> Any:
        try:
            return await super()._run_driver()
        finally:
            self._driver = None

    def _driver_done(self, driver: asyncio.Task[Any]) -> None:
        if self._code is None:
            super()._driver_done(driver)

    def _add_entries(self, metadata: Any) -> Any:
        spent = self._hedges.attempts - 1 if self._hedges is not None else 0
        entries = entries_of(self._hop, self._method.policy.hedging.max_attempts, spent)
        return [*entries, *(metadata or ())] if entries else metadata

    # -- attempts end

    def _attempt_done(self, inner: Any) -> None:
        if inner is self._running or self._take(inner):
            super()._attempt_done(inner)

    def _decide(self, failure: Failure, now: float) -> float | Stop | None:
        decision = self._course().after(failure, now, self._deadline - now)
        if isinstance(decision, Stop):
            self._tell_stop(failure, decision)
        return decision

    def _continue(self, pause: float | None, now: float) -> None:
        if self._others:
            self._take(self._others[0].inner)
        if self._movement is not None:
            self._moved()
        if pause:
            asyncio.get_running_loop().call_later(pause, lambda: self._replace(self._method.monotonic()))
        elif pause is not None:
            self._replace(now)

    def _end(self, code: grpc.StatusCode, now: float) -> None:
        if code is _OK:
            self._pacer.took(now - self._attempt_started)
        if self._others or self._driver is not None:
            self._let_go(code, now)
        super()._end(code, now)

    def _let_go(self, code: grpc.StatusCode, now: float) -> None:
        """Cancel every attempt but the present one."""
        others, self._others = self._others, ()
        if self._driver is not None:
            self._driver.cancel()
        for other in others:
            took = now - other.started
            other.connection.call_ended()
            # How long it would have taken is not known, but that one begun later elsewhere was quicker.
            beaten = code is _OK and self._attempt_started > other.started
            if beaten:
                other.connection.given_up += 1
                self._pacer.took(took)
            slow = inf if beaten else took
            other.permit.record(Outcome.NEUTRAL, now, self._method.pool.dice.random(), slow, self._method.timed)
            self._method.attempts("CANCELLED").inc()
            self.attempts += (AttemptRecord(other.slot.name, "CANCELLED", took * 1000, _LOST),)
            if other.span is not None:
                tracing.end(other.span, "CANCELLED")
            other.inner.cancel()

    def _put_aside(self) -> None:
        if self._running is not None:
            self._others += (_Attempt(self),)
            self._running = None

    def _take(self, inner: Any) -> bool:
        """Make one of the others the present attempt; False if it is none of them."""
        for other in self._others:
            if other.inner is inner:
                self._put_aside()
                self._others = tuple(o for o in self._others if o is not other)
                self._inner = self._running = inner
                self._slot, self._permit, self._connection = other.slot, other.permit, other.connection
                self._attempt_started = other.started
                if other.span is not None:
                    self._attempt_span = other.span
                return True
        return False

    # -- the caller's side

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the response; raise CallError if the call failed."""
        while self._code is None:
            inner = self._running
            if inner is None:
                yield from self._news().__await__()
                continue
            try:
                return (yield from inner.__await__())
            except aio.AioRpcError:
                if self._running is inner:
                    yield from self._news().__await__()
            except asyncio.CancelledError:
                self._check_cancelled()
            except Exception as e:
                self._refused(e)
        if self._error is not None:
            raise self._failed()
        return (yield from self._inner.__await__())

    async def _news(self) -> None:
        try:
            await self._move()
        except asyncio.CancelledError:
            self.cancel()
            raise
