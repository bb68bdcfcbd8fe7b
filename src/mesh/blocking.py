"""The mesh for threads: `mesh.blocking.connect(...)` gives a `grpc.Channel` for any generated stub."""

from __future__ import annotations

from mesh.client.blocking import BlockingCallError, Channel, connect
from mesh.client.blocking_interceptors import BreakerInterceptor, RetryInterceptor
from mesh.client.errors import attempts

__all__ = ["BlockingCallError", "BreakerInterceptor", "Channel", "RetryInterceptor", "attempts", "connect"]
