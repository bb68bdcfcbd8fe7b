"""One connection to one instance: a grpc.aio channel of its own, watched, so that its state is known at every
moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from mesh.client.options import connection_options, target_of

if TYPE_CHECKING:
    from mesh.client.health import HealthWatch
    from mesh.client.sync_twin import Twins
    from mesh.client.thread import LoopThread

# gRPC's core fails the calls of a connection that broke before it has the channel say that it did, by up to a
# millisecond on a busy machine. So it is asked so many times more, so many seconds apart; once takes a microsecond.
_LOOKS = 3
_MOMENT = 0.0003

# Seconds that a connection has stood before its instance is asked for its health.
_SETTLED = 1.0

Told = Callable[[bool, bool], None]
"""Hears (connected, failing) whenever the connection changes."""


class Connection:
    """Connects at once and again whenever it is lost, until closed."""

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        told: Told,
        *,
        ours: bool = False,
        ask: Callable[[Connection], HealthWatch] | None = None,
    ) -> None:
        """ask: begins to listen to what the instance says of its health."""
        options, target = connection_options(ours=ours), target_of(target)
        if credentials is None:
            self.channel = aio.insecure_channel(target, options=options)
        else:
            self.channel = aio.secure_channel(target, credentials, options=options)
        self.twins: Twins | None = None
        """Connections of the blocking kind beside this one, where threads make calls themselves."""
        self._made_of = target, credentials, options
        self.in_flight = 0
        # For `mesh.resilience.stall`, which says what they are.
        self.streams = self.answered = self.given_up = 0
        self.is_cut = False
        """What is cancelled from now on is cancelled by us, not by the caller."""
        self._drained: asyncio.Future[None] | None = None
        self._told = told
        self._ask = ask
        self._settling: asyncio.TimerHandle | None = None
        self.health: HealthWatch | None = None
        self._closed = False
        self._state: grpc.ChannelConnectivity | None = None
        # Now, not when the watch has its first turn: a busy loop takes a while to come to it.
        self.channel.get_state(try_to_connect=True)
        self._watch = asyncio.get_running_loop().create_task(self._watch_state(), name=f"mesh watch {target}")

    @property
    def is_closing(self) -> bool:
        """Whether no attempt is to begin here any more."""
        return self._closed

    def twins_of(self, thread: LoopThread) -> Twins:
        """Return the connections for calls that threads make themselves. Call it with the loop's lock."""
        if self.twins is None:
            from mesh.client.sync_twin import Twins, connector

            self.twins = Twins(thread, connector(*self._made_of))
        return self.twins

    def call_failed(self) -> None:
        """Ask for the state now: an attempt has just failed, and the watch may hear of it later than we need it."""
        self._check(_LOOKS)

    def _check(self, looks: int = 0) -> None:
        """Tell the state if it is another than before, or ask so many times more."""
        if self._closed:
            return
        # True: an idle connection is one that was lost, and is wanted again.
        state = self.channel.get_state(try_to_connect=True)
        if state is not self._state:
            self._state = state
            if self.twins is not None and state is not grpc.ChannelConnectivity.READY:
                self.twins.retire()
            self._heed(state is grpc.ChannelConnectivity.READY)
            self._told(state is grpc.ChannelConnectivity.READY, state is grpc.ChannelConnectivity.TRANSIENT_FAILURE)
        elif looks:
            asyncio.get_running_loop().call_later(_MOMENT, self._check, looks - 1)

    def _heed(self, stands: bool) -> None:
        """Listen to the instance's health while the connection stands, but not in its first moments."""
        if self._settling is not None:
            self._settling.cancel()
        if self.health is not None:
            self.health.close()
        self._settling = self.health = None
        if stands and self._ask is not None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(_SETTLED, self._begin_to_ask, self._ask, context=Context())

    def _begin_to_ask(self, ask: Callable[[Connection], HealthWatch]) -> None:
        self.health = ask(self)

    async def close(self, grace: float | None = None) -> None:
        """Give calls in flight so many seconds, cut the rest, and let go. Nobody begins a call here any more."""
        self._closed = True
        self._watch.cancel()
        asked = self.health
        self._heed(False)
        if self.twins is not None:
            self.twins.retire()
        try:
            if grace and self.in_flight:
                self._drained = asyncio.get_running_loop().create_future()
                await asyncio.wait([self._drained], timeout=grace)
        finally:
            self.is_cut = True
            if self.twins is not None:
                await self.twins.close()
            await self.channel.close()
        await asyncio.gather(self._watch, return_exceptions=True)
        if asked is not None:
            await asked.ended()

    def call_ended(self) -> None:
        """Count a call out. Whoever begins one counts it in, on `in_flight`."""
        self.in_flight -= 1
        if self._drained is not None:
            self.settle()

    def settle(self) -> None:
        """Let `close` go on if nothing is in flight. In any thread that has the loop's lock, or on the loop."""
        if self._drained is not None and not self.in_flight:
            self._drained.get_loop().call_soon_threadsafe(_wake, self._drained)

    async def _watch_state(self) -> None:
        while not self._closed:
            self._check()
            assert self._state is not None
            await self.channel.wait_for_state_change(self._state)


def _wake(drained: asyncio.Future[None]) -> None:
    if not drained.done():
        drained.set_result(None)
