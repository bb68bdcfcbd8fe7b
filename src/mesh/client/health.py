"""What an instance says of its own health: one grpc.health.v1 Watch on each connection (gRFC A17), for the service
that is called. An instance that does not want calls is passed over while there are others: one that leaves is known by
it where the registry cannot tell.

- It is asked once its connection has stood for a second, so that first calls and short programs do not pay for it.
- What it said last counts until the connection breaks, also where the stream ends before. That is opened again, after
  longer and longer pauses.
- A server that implements no Watch is never asked again over this connection, and called.
- SERVICE_UNKNOWN is believed from servers of the mesh: somebody else lives at that address now. Others tell of the
  whole server only ("") more often than not, so there it says nothing. gRPC's own clients need no such rule: they ask
  only where a person has told them for which name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2

from mesh.clock import Clock, Dice
from mesh.resilience.reconnect import Reconnect

if TYPE_CHECKING:
    from mesh.client.connection import Connection
    from mesh.client.pool import Pool
    from mesh.client.roster import Slot

_log = logging.getLogger("mesh.client")

_WATCH = "/grpc.health.v1.Health/Watch"
_Status = health_pb2.HealthCheckResponse
# Seconds. A Watch ends when something is wrong with it: a proxy between, a server that allows it to nobody.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


def watch_health(pool: Pool, slot: Slot, connection: Connection) -> HealthWatch:
    """Have a pool heed what the instance at the other end of a connection says, as long as it calls over that one."""

    def heard(serving: bool) -> None:
        if pool.closed or slot.connection is not connection or slot.serving is serving:
            return
        says = "it serves again" if serving else "it is not serving"
        action = {"event.action": "endpoint-serving" if serving else "endpoint-not-serving"}
        _log.info("%s of %s says that %s", slot.name, pool.service, says, extra=action)
        pool.heed(slot, serving=serving)

    ours = bool(slot.instance.contract)
    return HealthWatch(connection.channel, pool.service, heard, pool.clock, pool.dice, ours=ours)


class HealthWatch:
    """Listens until it is closed. `heard` is told whether the instance wants calls, whenever it says something."""

    def __init__(
        self, channel: aio.Channel, service: str, heard: Callable[[bool], None], clock: Clock, dice: Dice, *, ours: bool
    ) -> None:
        """ours: the instance is a server of the mesh."""
        self._open = channel.unary_stream(_WATCH, health_pb2.HealthCheckRequest.SerializeToString, _Status.FromString)
        self._request = health_pb2.HealthCheckRequest(service=service)
        self._well = {_Status.SERVING} if ours else {_Status.SERVING, _Status.SERVICE_UNKNOWN}
        self._heard = heard
        self._clock = clock
        self._dice = dice
        # In nobody's context: it lives longer than the call in whose time it happens to begin.
        self._task = asyncio.get_running_loop().create_task(self._listen(), name="mesh health", context=Context())

    def close(self) -> None:
        """Listen no more."""
        self._task.cancel()

    async def ended(self) -> None:
        """Return when nothing is left of it, once it was closed."""
        await asyncio.wait([self._task])

    async def _listen(self) -> None:
        again = Reconnect(_FIRST_PAUSE, _LONGEST_PAUSE)
        while await self._ask(again):
            await self._clock.sleep(again.failed(self._dice.random()))

    async def _ask(self, again: Reconnect) -> bool:
        """Listen to one stream until it ends; False if there is no use in another."""
        call: Any = self._open(self._request)
        try:
            while (answer := await call.read()) is not aio.EOF:
                again.worked()
                self._heard(answer.status in self._well)
        except Exception as e:
            # Whatever else it is, it is no news of the instance.
            _log.debug("a watch of %s has ended: %s", self._request.service, e)
            if isinstance(e, aio.AioRpcError) and e.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._heard(True)
                return False
        finally:
            call.cancel()
        return True
