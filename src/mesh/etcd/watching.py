"""A watch that goes on for ever: over broken streams, restarts, elections, hung members and expired tokens.

What an answer means is decided by `cursor`; here is only the waiting. Each watch has a stream of its own on the shared
connection. A quiet stream is asked for a sign of life; one that gives none is left, and its member with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc

from grpcmesh.etcd.v3 import etcd_pb2 as pb
from mesh.clock import Clock, Dice
from mesh.errors import StoreUnavailable
from mesh.etcd.border import Silent, denied
from mesh.etcd.cursor import Cursor, WatchRefused
from mesh.etcd.session import Session, Stream, drop
from mesh.etcd.wire import PROGRESS, RANGE, WATCH, range_request
from mesh.resilience.reconnect import Reconnect
from mesh.store import Changed
from mesh.telemetry.metrics import WATCH_BREAKS
from mesh.timers import timeout

_log = logging.getLogger("mesh.etcd")

# Seconds of quiet after which a sign of life is asked for, and of silence after which a member counts as hung: that
# keeps the promise to be with another one within 8 s. Shorter is dearer for etcd: one message per watch each time.
ASK_AFTER = 2.0
HUNG_AFTER = 5.0

WatchStream = Stream[pb.WatchRequest, pb.WatchResponse]


async def watch(session: Session, prefix: str, after: int, clock: Clock, dice: Dice) -> AsyncIterator[Changed]:
    """Tell every change under a prefix after a revision. See `mesh.store.Store.watch`."""
    cursor = Cursor(prefix, after)
    reconnect = Reconnect()
    refused = False
    while True:
        try:
            async with session.stream(WATCH) as stream:
                await stream.send(cursor.request())
                async for answer in _answers(stream, clock):
                    if cursor.is_ahead_of(answer.header):
                        cursor.confirm((await session.call(RANGE, range_request(prefix or "\0"))).header)
                    told = cursor.take(answer)
                    session.heard()
                    reconnect.worked()
                    refused = False
                    for changed in told:
                        yield changed
        except WatchRefused as e:
            # 1. The token expired: once more with a new one.  2. With a new one: we really may not.
            if refused or not session.user:
                raise denied(session.user, str(e)) from e
            refused = True
            session.forget_token()
            WATCH_BREAKS.labels("token").inc()
            continue
        except StoreUnavailable as e:
            WATCH_BREAKS.labels("silent" if isinstance(e, Silent) else "broken").inc()
            _log.debug("watch of %s broke at revision %d: %s", prefix, cursor.told, e)
        await clock.sleep(reconnect.failed(dice.random()))


async def _answers(stream: WatchStream, clock: Clock) -> AsyncIterator[pb.WatchResponse]:
    """Tell what a stream brings; raise Silent when it brings nothing for too long.

    Another task asks for signs of life, and this one does nothing but read: so an event is told, and a connection to a
    new instance begun, in the very turn of the event loop in which it is here.
    """
    heard = clock.monotonic()
    asking: asyncio.Task[None] | None = None

    async def ask() -> None:
        with suppress(StoreUnavailable, grpc.RpcError):  # the reader is told too
            while True:
                pause = heard + ASK_AFTER - clock.monotonic()
                if pause <= 0:
                    await stream.send(PROGRESS)
                    pause = ASK_AFTER
                await clock.sleep(pause)

    try:
        while True:
            try:
                async with timeout(HUNG_AFTER):
                    answer = await stream.read()
            except TimeoutError:
                raise stream.silent("the watch gave no sign of life") from None
            heard = clock.monotonic()
            yield answer
            # Not before the first answer, to the creation: etcd 3.4 and 3.5 mind requests on a stream without a watch.
            asking = asking or asyncio.create_task(ask(), name="mesh-etcd-ask")
    finally:
        await drop(asking)
