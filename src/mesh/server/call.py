"""One call being answered: the context its handler sees, its deadline, and its account in metrics, traces and logs.

`ServedCall` begins before the request is parsed and is closed exactly once, whatever happens. It is written for speed:
it stands in the way of every call, and all that it does costs a few per cent of what grpc.aio does for the same call.
A callable that is kept in an attribute, or is one of an import's, gets a name of its own before it is called: as
`method.monotonic()` Python 3.11 looks it up the slow way every time.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

import grpc

from mesh.clock import Clock
from mesh.errors import Refusal
from mesh.resilience.hops import CURRENT, STOP_RETRYING, Hop
from mesh.resilience.limiter import Pace
from mesh.resilience.retry import PUSHBACK
from mesh.server.admission import Admission
from mesh.server.errors import (
    BROKEN,
    IN_VAIN,
    LEAVING,
    NEED_UNMET,
    NO_TIME_LEFT,
    OVERLOADED,
    TOO_SLOW,
    UNREADABLE,
    need_full,
    trailer_of,
)
from mesh.server.inhand import CallsInHand
from mesh.server.load import LoadMeter
from mesh.telemetry import metrics, tally, tracing
from mesh.telemetry.tracing import enabled as is_traced

_log = logging.getLogger("mesh.server")

# Kept of the caller's deadline to say what went wrong (letsencrypt/boulder does the same), but never more than a tenth
# of it: a caller with 30 ms left still gets 27 of them.
ANSWER_RESERVE = 0.020
_RESERVE_SHARE = 0.1
_LONG = ANSWER_RESERVE / _RESERVE_SHARE

# Refusals of calls that ran out of time.
_LATE = (TOO_SLOW, NO_TIME_LEFT, IN_VAIN)

# What a server answers that is away, or about to be: some leave calls to it that it has not begun as cancelled.
_UNMET = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

# Less than this is no time to do anything in.
_HARDLY = 0.0005

# Longest deadline granted to a caller; a contract that says more wins. A caller that writes ten years means "I did not
# think about it", and its call would outlive every restart.
LONGEST = 3600.0

# A failure that was tried again already, or that no budget paid for, is not worth another attempt upstream: in gRPC's
# word, and in the only one that Envoy knows, which would also keep the answer back while a hedge is under way.
_MARK = ((PUSHBACK, STOP_RETRYING), ("x-envoy-ratelimited", "true"))

_make_current = CURRENT.set

_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def is_error(code: Any) -> bool:
    """Whether a code that a handler has set, as a number or as grpc's own, is one of an error."""
    return code is not grpc.StatusCode.OK and code != 0


def _name_of(code: Any) -> str:
    return _NAMES.get(code, "UNKNOWN") if isinstance(code, int) else str(code.name)


class Unreadable(Exception):
    """The bytes of a request are no message of the method."""


class TooLate(Exception):
    """The call was refused before its handler began; `ServedCall.refused` says why."""


class ServedMethod:
    """What all calls of one method share: its names, its time and its metrics. Labels come from contracts only."""

    __slots__ = (
        "_counters",
        "_seconds",
        "admission",
        "due",
        "in_hand",
        "longest",
        "meter",
        "monotonic",
        "name",
        "pace",
        "service",
        "streams_for",
        "succeeded",
        "timeout",
    )

    def __init__(
        self,
        service: str,
        name: str,
        timeout: float,
        clock: Clock,
        in_hand: CallsInHand,
        *,
        streams: bool,
        admission: Admission | None = None,
    ) -> None:
        """admission: the door that its calls come in by, None for one that is always open."""
        self.service = service
        self.name = name
        self.timeout = timeout
        self.streams_for = timeout if streams else 0.0
        self.longest = max(LONGEST, timeout)
        self.monotonic = clock.monotonic
        self.in_hand = in_hand
        self.admission = admission
        self.pace = Pace()
        self._seconds = metrics.SERVER_CALL_SECONDS.labels(service, name)
        self._counters: dict[str, Any] = {}
        self.succeeded = tally.tally_of(self._seconds, metrics.SERVER_CALLS.labels(service, name, "OK"))
        """Count an answer that took so many seconds."""
        self.due = clock.monotonic()
        """When an answer is to have all of them handed to the metrics."""
        self.meter: LoadMeter | None = None
        """Set where the contract asks for load reports."""
        _hands.add(in_hand)
        # Asked when the page is read, so that a call pays nothing for it.
        metrics.SERVER_IN_FLIGHT.labels(service).set_function(partial(_running, service))

    def failed(self, code: str, seconds: float) -> None:
        """Count an answer that is none."""
        counter = self._counters.get(code)
        if counter is None:
            counter = self._counters[code] = metrics.SERVER_CALLS.labels(self.service, self.name, code)
        counter.inc()
        self._seconds.observe(seconds)


_hands: WeakSet[CallsInHand] = WeakSet()


def _running(service: str) -> float:
    return sum(hand.count(service) for hand in tuple(_hands))


class ServedCall:
    """A call being answered. Handlers get it as their context: it is grpc's, with the deadline that really holds."""

    __slots__ = (
        "_aborted",
        "_context",
        "_scope",
        "_span",
        "_started",
        "_task",
        "deadline",
        "hop",
        "is_in",
        "method",
        "refused",
    )

    def __init__(self, method: ServedMethod, context: Any) -> None:
        self.method = method
        self._context = context
        self.refused: Refusal | None = None
        self._aborted = ""
        self.is_in = False  # and has to leave by the door that it came in by
        self._scope: tracing.ServerSpan | None = None
        # Not given the loop it would ask for it, which is a system call in Python 3.11.
        self._task = asyncio.current_task(method.in_hand.loop)
        monotonic = method.monotonic
        self._started = now = monotonic()
        left = context.time_remaining()
        if left is None:
            self.deadline = now + method.timeout
        else:
            if left < _HARDLY:
                self.refused = NO_TIME_LEFT
            left -= ANSWER_RESERVE if left > _LONG else left * _RESERVE_SHARE
            self.deadline = now + (left if left < method.longest else method.longest)
        # The task is this call's own, so nobody has to put back what was current before.
        self.hop = hop = Hop(self.deadline, context.invocation_metadata)
        _make_current(hop)
        method.in_hand.add(self)
        if is_traced():
            self._scope = tracing.start_server(method.service, method.name, context.invocation_metadata())
            self._span = self._scope.__enter__()

    async def enter(self) -> None:
        """Come in by the door, at once or after a few milliseconds, or raise TooLate: too many calls are in work, or it
        has less time left than its method takes at its fastest.
        """
        method = self.method
        assert method.admission is not None
        now = method.monotonic()
        needs = method.pace.needs(self.deadline - now, now)
        if self.deadline - now < needs:
            self.refused = IN_VAIN
            raise TooLate
        if not await method.admission.enter(method.service, self.hop.told()[1]):
            if self.refused is None:
                self.refused = OVERLOADED
            raise TooLate
        self.is_in = True
        if self.deadline - method.monotonic() < needs:
            self.refused = self.refused or IN_VAIN
            raise TooLate

    @property
    def service(self) -> str:
        """The service that it is a call of."""
        return self.method.service

    @property
    def streams_for(self) -> float:
        """Seconds that the contract lets it send responses, one after the other; 0 where there is one response."""
        return self.method.streams_for

    if TYPE_CHECKING:  # see below

        def __getattr__(self, name: str) -> Any: ...

    def time_remaining(self) -> float:
        """Return the seconds until the handler is cancelled: the caller's deadline, or the contract's without one."""
        return 0.0 if self.refused is not None else max(self.deadline - self.method.monotonic(), 0.0)

    async def abort(self, code: Any, details: str = "", trailing_metadata: tuple[Any, ...] = ()) -> NoReturn:
        """End the call with an error, as grpc's own does."""
        self._aborted = _name_of(code)
        if self.hop.is_spent:
            trailing_metadata = (*(trailing_metadata or self._context.trailing_metadata() or ()), *_MARK)
        if self.method.meter is not None:
            trailing_metadata = (
                *(trailing_metadata or self._context.trailing_metadata() or ()),
                *self.method.meter.tell(),
            )
        await self._context.abort(code, details, trailing_metadata)
        raise AssertionError("abort always raises")

    async def abort_with_status(self, status: Any) -> NoReturn:
        """End the call with a google.rpc.Status, as grpc's own does."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def cut(self, why: Refusal) -> None:
        """Cancel the handler and answer with `why` instead; once it is cut, nothing."""
        if self.refused is None and self._task is not None:
            self.refused = why
            self._task.cancel()

    def finish(self, code: Any) -> None:
        """Close the account of a call whose handler returned, with the code that it has set if any."""
        if code and is_error(code):
            if self.hop.is_spent:
                self._context.set_trailing_metadata((*(self._context.trailing_metadata() or ()), *_MARK))
            self._tell_load()
            self._close(_name_of(code), cancelled=False)
            return
        # Nearly all calls end here, so it is written out: every name and every function more is felt.
        method = self.method
        if method.meter is not None:
            self._tell_load()
        self.hop.close()
        discard, monotonic, succeeded = method.in_hand.discard, method.monotonic, method.succeeded
        discard(self)
        now = monotonic()
        seconds = now - self._started
        succeeded(seconds)
        if now >= method.due:
            method.due = now + tally.EVERY
            tally.flush(now)
        if self.is_in:
            method.admission.leave(method.pace, seconds, now)  # type: ignore[union-attr]  # it came in by that door
        if method.meter is not None or self._scope is not None:
            self._report("OK")

    async def fail(self, error: BaseException) -> NoReturn:
        """Close the account of a call whose handler raised, and answer the caller; always raises."""
        cancelled = isinstance(error, asyncio.CancelledError)
        refusal = self._refusal_for(error)
        if refusal is None:
            # The handler has answered by itself; or the caller went away, or the process goes.
            self._close(self._aborted or "CANCELLED", cancelled=cancelled)
            raise error
        if cancelled and self._task is not None:
            self._task.uncancel()
        self._close(refusal.code.name, cancelled=cancelled)
        # Whoever leaves says nothing about the others: there the call may be repeated.
        mark = _MARK if refusal.is_final or (self.hop.is_spent and refusal is not LEAVING) else ()
        load = self.method.meter.tell() if self.method.meter is not None else ()
        await self._context.abort(refusal.code, refusal.message, trailer_of(refusal) + mark + load)
        raise AssertionError("abort always raises")

    def _refusal_for(self, error: BaseException) -> Refusal | None:
        """Return what to answer where a handler raised, or None where there is nothing to add."""
        if self.refused is not None:
            return self.refused
        if isinstance(error, Refusal):
            return error
        if isinstance(error, Unreadable):
            return UNREADABLE
        if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError) or not isinstance(error, Exception):
            return None
        # A call on its behalf failed and the handler has nothing to say to that. Its time is ours: who of the two
        # notices first that it is over must make no difference.
        code = error.code() if isinstance(error, grpc.RpcError) and hasattr(error, "code") else None
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return TOO_SLOW
        if code in _UNMET:
            return NEED_UNMET
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return need_full(error)
        self._log(error)
        return BROKEN

    def _log(self, error: Exception) -> None:
        service, name = self.method.service, self.method.name
        about = {"event.action": "handler-failed", "service.name": service}
        _log.error("%s/%s failed unexpectedly", service, name, exc_info=error, extra=about)

    def _tell_load(self) -> None:
        if self.method.meter is not None and (load := self.method.meter.tell()):
            self._context.set_trailing_metadata((*(self._context.trailing_metadata() or ()), *load))

    def _close(self, code: str, *, cancelled: bool) -> None:
        """Close the account of a call that failed."""
        method = self.method
        self.hop.close(cancelled)
        method.in_hand.discard(self)
        now = method.monotonic()
        seconds = now - self._started
        method.failed(code, seconds)
        if self.is_in and method.admission is not None:
            # The time at the gate is part of the call's: it is what tells of an overload there.
            late = self.refused in _LATE or now >= self.deadline
            method.admission.leave(method.pace if late else None, seconds, now, late=late)
        self._report(code)

    def _report(self, code: str) -> None:
        if self.method.meter is not None:
            self.method.meter.answered(code)
        if self._scope is not None:
            tracing.end(self._span, code)
            self._scope.__exit__(None, None, None)


# The rest of grpc's context, by name and not by `__getattr__`: a class that has one pays for it with every attribute.
for _name in dir(grpc.aio.ServicerContext):
    if not _name.startswith("_") and _name not in vars(ServedCall):
        setattr(ServedCall, _name, property(attrgetter(f"_context.{_name}")))
