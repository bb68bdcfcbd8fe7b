"""What all calls of one method share: its policy, its metrics, its way into the pool. Made once per multicallable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mesh.client.pool import MAX_TIMEOUT, Pool
from mesh.client.roster import Slot
from mesh.policy import MethodPolicy
from mesh.telemetry import metrics
from mesh.telemetry.tally import tally_of

if TYPE_CHECKING:
    from prometheus_client import Counter

    from mesh.client.pacer import Pacer

CACHED = 1024
"""Methods remembered per channel. Stubs and serializers that are made anew for each call must not fill the memory."""


class Method:
    """One method of the service, as seen from one channel."""

    __slots__ = (
        "__weakref__",
        "answers_once",
        "attempt_timeout",
        "is_hedged",
        "kind",
        "monotonic",
        "name",
        "pacer",
        "path",
        "policy",
        "pool",
        "registered",
        "response_deserializer",
        "seconds",
        "sends_one",
        "serialize",
        "service",
        "succeeded",
        "timed",
    )  # fmt: skip

    def __init__(
        self,
        kind: str,
        path: str,
        policy: MethodPolicy,
        pool: Pool,
        serialize: Callable[[Any], bytes] | None,
        response_deserializer: Callable[[bytes], Any] | None,
        registered: bool,
    ) -> None:
        self.kind = kind
        self.answers_once = kind.endswith("_unary")
        self.sends_one = kind.startswith("unary_")
        self.timed = path if self.answers_once and self.sends_one else None
        """By what the times of its calls are compared; None: a stream lasts as long as its caller wants."""
        self.path = path
        self.service, _, self.name = path.lstrip("/").rpartition("/")
        self.pool = pool
        self.monotonic = pool.clock.monotonic
        self.pacer: Pacer | None = None
        """Made when calls are hedged first, and kept for those under way when they no longer are."""
        self.go_by(policy)
        self.serialize = serialize if serialize is not None else _as_it_is
        self.response_deserializer = response_deserializer
        self.registered = registered
        # Children are looked up once: labels() costs more than all the rest of a measurement.
        self.seconds = metrics.CLIENT_CALL_SECONDS.labels(self.service, self.name)
        self.succeeded = tally_of(self.seconds, self.calls("OK"), self.attempts("OK"))
        """Count a call that succeeded after so many seconds. To be followed by `Pool.take_stock`, if that is due."""

    def go_by(self, policy: MethodPolicy) -> None:
        """Treat calls that begin from now on by this policy."""
        self.policy = policy
        self.attempt_timeout = (policy.retry.attempt_timeout if self.answers_once else 0.0) or math.inf
        """Seconds of one attempt. A stream of responses lasts as long as its caller listens."""
        self.is_hedged = policy.hedging.max_attempts > 1 and self.kind == "unary_unary"
        if self.is_hedged and self.pacer is None:
            from mesh.client.pacer import Pacer

            self.pacer = Pacer(self)

    def on(self, slot: Slot) -> Any:
        """Return the multicallable of this method on an endpoint's connection. Requests go in serialized."""
        call = slot.calls.get(self)
        if call is None:
            if len(slot.calls) >= CACHED:
                slot.calls.clear()
            make = getattr(slot.connection.channel, self.kind)
            call = slot.calls[self] = make(
                self.path, None, self.response_deserializer, _registered_method=self.registered
            )
        return call

    def attempts(self, code: str) -> Counter:
        """Return the counter of attempts that ended so."""
        return metrics.CLIENT_ATTEMPTS.labels(self.service, self.name, code)

    def calls(self, code: str) -> Counter:
        """Return the counter of calls that ended so."""
        return metrics.CLIENT_CALLS.labels(self.service, self.name, code)

    def timeout(self, asked: float | None) -> float:
        """Return the seconds a call may take: what its caller asked, within reason, or what its policy says."""
        if asked is None:
            return self.policy.timeout
        if math.isnan(asked):
            return 0.0
        return min(asked, MAX_TIMEOUT)


def _as_it_is(message: Any) -> bytes:
    if not isinstance(message, bytes):
        raise TypeError(f"a method without a serializer takes bytes, not {type(message).__name__}")
    return message
