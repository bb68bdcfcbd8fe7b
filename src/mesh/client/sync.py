"""Unary calls made in the threads of their callers: the road of `mesh.client.blocking` that costs no more than a plain
stub's.

Most calls are plain and succeed at once. For those this does what `mesh.client.attempts` does, with the same machines,
in the same order, under the loop's lock (`mesh.client.thread`); but in one piece, because with the lines of that class
around it a call costs a tenth more. The moment there is anything else to decide, `sync_call` takes over.
"""

from __future__ import annotations

from typing import Any

from mesh.client.connection import Connection
from mesh.client.errors import metadata_fault
from mesh.client.pool import MAX_TIMEOUT
from mesh.client.sync_answer import AnsweredCall
from mesh.client.sync_attempt import ThreadAttempt
from mesh.client.sync_call import Answer, ThreadCall
from mesh.client.sync_twin import Twin
from mesh.client.thread import LoopThread
from mesh.resilience.hops import CURRENT
from mesh.resilience.outcome import Outcome
from mesh.telemetry.tracing import enabled as is_traced

_SUCCESS = Outcome.SUCCESS


def make_call(thread: LoopThread, telling: bool, arguments: tuple[Any, ...]) -> Answer:
    """Make a call with the arguments of `Attempts`; return the response and, if `telling`, the call object.

    Raises BlockingCallError if the call failed. In one function though it is long: two cost a call 2 % more.
    """
    method, request, timeout, metadata, credentials, _, compression = arguments
    pool = method.pool
    started = method.monotonic()
    if timeout is None:
        allowed = method.policy.timeout
    else:
        allowed = timeout if 0 < timeout < MAX_TIMEOUT else method.timeout(timeout)
    if (
        not 0 < allowed <= method.attempt_timeout
        or pool.balance is not None
        or CURRENT.get() is not None
        or is_traced()
        or (metadata is not None and metadata_fault(metadata) is not None)
    ):
        return _make_in_steps(thread, telling, arguments)
    try:
        payload = method.serialize(request)
    except Exception:
        return _make_in_steps(thread, telling, arguments)
    gate, state = thread.gate, thread.state
    twin: Twin | None = None
    answered: Any = None
    try:
        with gate, state:
            pool.budget.deposit(started)
            picked = pool.pick(started)
            if picked is not None:
                connection: Connection = picked[0].connection
                twins = connection.twins or connection.twins_of(thread)
                found = twins.ready
                if found is not None:
                    make = found.calls.get(method) or found.on(method)
                    connection.in_flight += 1
                    found.in_flight += 1
                    twin = found  # From here on it has to be counted out.
                elif not connection.is_closing:
                    twins.want()
        if twin is None:
            call = ThreadCall(thread)
            call.take_over(arguments, started, started + allowed, payload)
            call.leave_to_the_loop(picked)
            return call.outcome(None, None, telling)
        if telling:
            response, answered = make.with_call(payload, allowed, metadata, credentials, None, compression)
        else:
            response = make(payload, allowed, metadata, credentials, None, compression)
        now = method.monotonic()
        with gate, state:
            left, twin = twin, None
            connection.in_flight -= 1
            left.in_flight -= 1
            connection.answered += 1
            if left.is_retired:
                connection.settle()
                twins.settle(left)
            picked[1].record(_SUCCESS, now, 0.5, now - started, method.timed)
            method.succeeded(now - started)
            if now >= pool.due:
                pool.take_stock(now)
    except BaseException as e:
        if twin is None:
            raise
        assert picked is not None
        call = ThreadCall(thread)
        call.take_over(arguments, started, started + allowed, payload)
        attempt = ThreadAttempt(connection, twin)
        if not attempt.take(e):
            # Ctrl-C, or what is no error of a call: the account is closed all the same.
            call.give_up(picked, attempt)
            raise
        call.take_result(picked, attempt)
        return call.outcome(None, attempt, telling)
    return response, AnsweredCall(response, answered) if telling else None


def _make_in_steps(thread: LoopThread, telling: bool, arguments: tuple[Any, ...]) -> Answer:
    call = ThreadCall(thread)
    response = None
    try:
        attempt = call.begin(arguments)
        if attempt is not None:
            response = call.wait_for(attempt, telling)
    except BaseException:
        call.interrupt()
        raise
    return call.outcome(response, attempt, telling)
