"""A simulated client: what a mesh channel does with a call, made of the same machines (`Retries`, `Budget`, `Breaker`,
the balancers). Read beside mesh.client.call, which does it with gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.balancing.load import Ending
from mesh.clock import Dice
from mesh.policy import BudgetPolicy, MethodPolicy
from mesh.resilience.breaker import Permit
from mesh.resilience.budget import Budget
from mesh.resilience.outcome import Outcome, outcome_of
from mesh.resilience.retry import Failure, Retries, Stop
from mesh.simulation.scenario import Clients
from mesh.simulation.server import REFUSED, Server
from mesh.simulation.steering import Endpoint, Endpoints
from mesh.simulation.tally import Tally
from mesh.simulation.timeline import Timeline

# As in mesh.client.call: a deadline that short says more about the caller than about the endpoint that missed it.
_PATIENCE = 0.5
# All simulated calls are of one method.
_KIND = "call"
# gRPC's pauses between attempts to connect, as mesh.client.options sets them.
_FIRST_RECONNECT, _LONGEST_RECONNECT, _RECONNECT_GROWTH = 0.1, 3.0, 1.6


class _Unlimited(Budget):
    """What a client without a budget has."""

    __slots__ = ()

    def deposit(self, now: float) -> None:
        pass

    def withdraw(self, now: float) -> bool:
        return True


class Call:
    """A call under way."""

    __slots__ = ("attempts", "began", "client", "deadline", "retries", "tried")

    def __init__(self, client: Client, began: float, deadline: float) -> None:
        self.client = client
        self.began = began
        self.deadline = deadline
        self.attempts = 0
        self.retries: Retries | None = None
        self.tried: tuple[Endpoint, ...] = ()


class Attempt:
    """One try of a call."""

    __slots__ = ("_permit", "_started", "call", "endpoint", "is_over")

    def __init__(self, call: Call, endpoint: Endpoint, permit: Permit, started: float) -> None:
        self.call = call
        self.endpoint = endpoint
        self.is_over = False
        self._permit = permit
        self._started = started

    def answer(self, code: str, *, unsent: bool = False) -> None:
        """Take the result; only the first one counts."""
        if self.is_over:
            return
        self.is_over = True
        client = self.call.client
        now = client.timeline.now
        took = now - self._started
        if code == "OK":
            self.endpoint.call_ended(now, took, Ending.ANSWERED)
            self._permit.record(Outcome.SUCCESS, now, 0.5, took, _KIND)
            client.ended(self.call, ok=True)
            return
        outcome = outcome_of(code)
        if code == "DEADLINE_EXCEEDED" and took < _PATIENCE:
            outcome = Outcome.NEUTRAL
        # Too much load is no fault, but a load.
        slow = outcome is Outcome.FAILURE or code == REFUSED
        self.endpoint.call_ended(now, took, Ending.FAILED if slow else Ending.CUT_SHORT)
        self._permit.record(outcome, now, client.dice.random(), took, _KIND)
        client.attempt_failed(self, Failure(code, unsent))


class Client:
    """One channel: its endpoints, its breakers, its budget."""

    __slots__ = ("_budget", "_endpoints", "_model", "_policy", "_waiting", "dice", "tally", "timeline")

    def __init__(self, model: Clients, servers: Sequence[Server], timeline: Timeline, dice: Dice, tally: Tally) -> None:
        self.timeline = timeline
        self.dice = dice
        self.tally = tally
        self._model = model
        self._policy = MethodPolicy(timeout=model.deadline, idempotent=model.idempotent, retry=model.retry)
        budget = model.budget
        self._budget = Budget(budget, 0.0) if budget is not None else _Unlimited(BudgetPolicy(), 0.0)
        self._endpoints = Endpoints(servers, model.breaker, model.balancer, timeline, dice)
        self._waiting: dict[Call, None] = {}
        """Calls that have no endpoint to go to."""

    def call(self) -> None:
        """Make a call."""
        now = self.timeline.now
        self._budget.deposit(now)
        self._try(Call(self, now, now + self._model.deadline))

    def attempt_failed(self, attempt: Attempt, failure: Failure) -> None:
        """Have the call tried again, or end it."""
        call, now = attempt.call, self.timeline.now
        if call.retries is None:
            call.retries = Retries(self._policy, self._budget, repeatable=self._policy.idempotent)
        call.tried += (attempt.endpoint,)
        pause = call.retries.after(failure, now, self.dice.random(), call.deadline - now)
        if isinstance(pause, Stop):
            self.ended(call, ok=False)
        elif pause:
            self.timeline.at(now + pause, self._try, call)
        else:
            self._try(call)

    def ended(self, call: Call, *, ok: bool) -> None:
        """Count a call that is over."""
        self.tally.call_ended(call.began, self.timeline.now, call.attempts, ok=ok)

    # -- what is heard of servers

    def connection_lost(self, server: Server) -> None:
        """Pick it no more, and try to reach it again, for ever."""
        endpoint = self._endpoints.get(server)
        if endpoint is None or not endpoint.connected:
            return
        endpoint.connected = False
        self._endpoints.arrange()
        self._reconnect((endpoint, _FIRST_RECONNECT))

    def said(self, server: Server, *, ready: bool) -> None:
        """Take over from the registry whether a server wants calls."""
        endpoint = self._endpoints.get(server)
        if endpoint is None:
            return
        endpoint.wanted = ready
        if ready and not endpoint.connected:
            endpoint.connection_made(self.timeline.now)
        self._arrange()

    def _reconnect(self, state: tuple[Endpoint, float]) -> None:
        endpoint, pause = state
        if endpoint.connected:
            return
        if endpoint.server.listening and not endpoint.server.hung:
            endpoint.connection_made(self.timeline.now)
            self._arrange()
            return
        grown = min(pause * _RECONNECT_GROWTH, _LONGEST_RECONNECT)
        again = self.timeline.now + pause * (0.8 + 0.4 * self.dice.random())
        self.timeline.at(again, self._reconnect, (endpoint, grown))

    def _arrange(self) -> None:
        self._endpoints.arrange()
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            self._try(call)

    # -- attempts

    def _try(self, call: Call) -> None:
        now = self.timeline.now
        if now >= call.deadline:
            self.ended(call, ok=False)
            return
        picked = self._endpoints.pick(now, call.tried)
        if picked is None:
            self._waiting[call] = None
            self.timeline.at(call.deadline, self._stop_waiting, call)
            return
        endpoint, permit = picked
        endpoint.call_began(now)
        attempt = Attempt(call, endpoint, permit, now)
        call.attempts += 1
        self.tally.sent.append(now)
        limit = self._model.attempt_timeout
        until = call.deadline if limit is None else min(call.deadline, now + limit)
        self.timeline.at(until, _out_of_time, attempt)
        endpoint.server.receive(attempt)

    def _stop_waiting(self, call: Call) -> None:
        if call in self._waiting:
            del self._waiting[call]
            self.ended(call, ok=False)


def _out_of_time(attempt: Attempt) -> None:
    attempt.answer("DEADLINE_EXCEEDED")
