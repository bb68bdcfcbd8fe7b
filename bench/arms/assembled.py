"""What a team would build without a mesh: deadline, metrics, retry and breaker as grpc.aio interceptors, on gRPC's own
round robin. Written as one would for production: tenacity for the retries, full jitter, only UNAVAILABLE, only while
the deadline lasts; metrics with their labels looked up once per method.

What it cannot have, whoever writes it: an interceptor does not see which of the addresses a call went to, so the
breaker is one for all of them, and a retry may meet the same sick server again.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc import aio
from prometheus_client import Counter, Histogram
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

_CALLS = Counter("assembled_calls", "Calls by method and code.", ["method", "code"])
_SECONDS = Histogram("assembled_seconds", "Duration of calls.", ["method"])
_ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

Continuation = Callable[[Any, Any], Any]


class Deadline(aio.UnaryUnaryClientInterceptor):
    """Gives a call without a timeout the default one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def intercept_unary_unary(self, continuation: Continuation, client_call_details: Any, request: Any) -> Any:
        """Set it."""
        if client_call_details.timeout is None:
            client_call_details = client_call_details._replace(timeout=self._seconds)
        return await continuation(client_call_details, request)


class Measure(aio.UnaryUnaryClientInterceptor):
    """Counts calls and their time."""

    def __init__(self) -> None:
        self._ok: dict[Any, Any] = {}
        self._seconds: dict[Any, Any] = {}

    async def intercept_unary_unary(self, continuation: Continuation, client_call_details: Any, request: Any) -> Any:
        """Count one."""
        method = client_call_details.method
        if method not in self._ok:
            self._ok[method] = _CALLS.labels(method, "OK")
            self._seconds[method] = _SECONDS.labels(method)
        begun = time.perf_counter()
        try:
            response = await continuation(client_call_details, request)
        except aio.AioRpcError as e:
            _CALLS.labels(method, e.code().name).inc()
            raise
        finally:
            self._seconds[method].observe(time.perf_counter() - begun)
        self._ok[method].inc()
        return response


class Retry(aio.UnaryUnaryClientInterceptor):
    """Tries again what was UNAVAILABLE, while the deadline lasts."""

    def __init__(self, attempts: int) -> None:
        self._retrying = AsyncRetrying(
            retry=retry_if_exception(_is_unavailable),
            stop=stop_after_attempt(attempts),
            wait=wait_random_exponential(multiplier=0.1, max=1),
            reraise=True,
        )

    async def intercept_unary_unary(self, continuation: Continuation, client_call_details: Any, request: Any) -> Any:
        """Make the attempts."""
        timeout = client_call_details.timeout
        until = time.monotonic() + timeout if timeout is not None else None

        async def attempt() -> Any:
            details = client_call_details
            if until is not None:
                details = details._replace(timeout=max(0.0, until - time.monotonic()))
            # Awaited here: only the answer tells whether another attempt is needed.
            return await (await continuation(details, request))

        return await self._retrying(attempt)


class RetryByHand(Retry):
    """The same without tenacity, for who wants to know what that costs a call that succeeds at once."""

    async def intercept_unary_unary(self, continuation: Continuation, client_call_details: Any, request: Any) -> Any:
        """Make the first attempt; leave the others to tenacity."""
        call = await continuation(client_call_details, request)
        try:
            return await call
        except aio.AioRpcError as e:
            if not _is_unavailable(e):
                raise
        return await super().intercept_unary_unary(continuation, client_call_details, request)


class Breaker(aio.UnaryUnaryClientInterceptor):
    """Refuses calls for a while once half of the last twenty have failed."""

    def __init__(self, window: int = 20, share: float = 0.5, pause: float = 30.0) -> None:
        self._failed: deque[bool] = deque(maxlen=window)
        self._share, self._pause = share, pause
        self._failures = 0
        self._open_until = 0.0

    async def intercept_unary_unary(self, continuation: Continuation, client_call_details: Any, request: Any) -> Any:
        """Let it through, or not."""
        if self._open_until and time.monotonic() < self._open_until:
            raise aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), details="the breaker is open"
            )
        call = await continuation(client_call_details, request)
        self._record(await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))
        return call

    def _record(self, failed: bool) -> None:
        window = self._failed
        if len(window) == window.maxlen:
            self._failures -= window[0]
        window.append(failed)
        self._failures += failed
        if failed and len(window) == window.maxlen and self._failures >= self._share * len(window):
            self._open_until = time.monotonic() + self._pause


def assembled(addresses: Sequence[str], retry: type[Retry] = Retry) -> aio.Channel:
    """Return the channel."""
    return aio.insecure_channel(
        f"ipv4:{','.join(addresses)}",
        # Retries are made above; stacked ones would multiply.
        options=[("grpc.service_config", _ROUND_ROBIN), ("grpc.enable_retries", 0)],
        interceptors=[Deadline(5.0), Measure(), retry(3), Breaker()],
    )


def _is_unavailable(error: BaseException) -> bool:
    return isinstance(error, aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
