"""Which endpoints hang: calls are under way there, nothing comes back, and from others it does.

A process that was stopped, or whose path lost its way, keeps its connection until a ping goes unanswered, some seconds
later; a handler that waits for ever keeps it for good. Until then one call after another would go there and wait for
its deadline. Slowness is not what this is about: an endpoint that answers, however late, is judged by its breaker.

Rules, asked anew every moment (`look`):
  hangs      calls have been under way for 0.2 s, and for twice the longest wait that any endpoint has ended with an
             answer of late, and nothing came; or five attempts in a row were given up as too slow. And the others
             answer: most of those that were called have done so since.
  is passed  over in picks, until anything comes back from it.
  is tried   again if nothing is under way there any more and so nothing can come back: after a second, and after twice
             as long each further time.
  never      more than half of the endpoints, nor the only one.

It is a guess, and being wrong is cheap: the endpoint is passed over until it answers, and the wait that was usual there
is known from then on.

Prior art: Envoy and gRPC have consecutive gateway failures and keepalive, both of which wait for a timeout; Finagle's
threshold failure detector compares the round trip of pings with the longest usual one, as this does with answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Protocol

# Shorter waits are hiccups: a collection of garbage, a checkpoint of a database.
_SHORTEST = 0.2
# Times the longest wait of late. Higher, and one hiccup of a machine hides a hung instance for as long as it is known.
_FACTOR = 2.0
# Attempts given up in a row. Chance alone gives up one in twenty; five in a row are one in three million.
_GIVEN_UP = 5
# An answer that was not there at the last look came this soon after it, as far as the longest wait of late goes:
# between two bursts of calls nobody looks, and the pause was no wait.
_SOON = 0.05
# The longest wait of late is forgotten, to 1/e, in half a minute.
_LIFE = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class Signs(Protocol):
    """What is known of an endpoint's calls. The counts only grow."""

    in_flight: int
    """Attempts under way."""
    streams: int
    """Those among them that may well be silent."""
    answered: int
    """Attempts from which something came back."""
    given_up: int
    """Attempts that were ended here because they took too long."""


class _Watch:
    """One endpoint, as of the last look."""

    __slots__ = ("answered", "asked", "given_up", "hangs", "heard", "idle_since", "pause", "since")

    def __init__(self, answered: int, given_up: int, heard: float) -> None:
        self.answered = answered
        self.given_up = given_up
        self.asked = False
        """Whether something was under way."""
        self.heard = heard
        """When something came back last, as far as looks can tell."""
        self.since: float | None = None
        """Since when something is waited for in vain."""
        self.hangs = False
        self.idle_since: float | None = None
        self.pause = _FIRST_PAUSE


class Stalls:
    """The endpoints of one service. Not locked: one loop, or one lock, owns it."""

    __slots__ = ("_looked", "_usual", "_watched")

    def __init__(self) -> None:
        self._watched: dict[Signs, _Watch] = {}
        self._usual = 0.0
        """The longest wait of late that ended with an answer."""
        self._looked = 0.0

    def __repr__(self) -> str:
        hanging = sum(watch.hangs for watch in self._watched.values())
        return f"Stalls({hanging} of {len(self._watched)} hang, waits up to {self._usual:.3f} s are usual)"

    def look(self, endpoints: Sequence[Signs], now: float) -> bool:
        """Look at those that are connected. Return whether it has changed who hangs."""
        before = self.hanging()
        self._usual *= exp((self._looked - now) / _LIFE)
        came, self._looked = min(self._looked + _SOON, now), now
        self._watched = {e: self._watched.get(e) or _Watch(e.answered, e.given_up, now) for e in endpoints}
        for endpoint, watch in self._watched.items():
            self._read(endpoint, watch, now, came)
        for endpoint, watch in self._watched.items():
            if watch.hangs:
                self._try_again(endpoint, watch, now)
            elif self._seems_to_hang(endpoint, watch, now) and 2 * (len(self.hanging()) + 1) <= len(self._watched):
                watch.hangs, watch.idle_since = True, None
        return self.hanging() != before

    def hanging(self) -> frozenset[Signs]:
        """Return those to be passed over."""
        return frozenset(endpoint for endpoint, watch in self._watched.items() if watch.hangs)

    def _read(self, endpoint: Signs, watch: _Watch, now: float, came: float) -> None:
        asked = endpoint.in_flight > endpoint.streams
        if endpoint.answered != watch.answered:
            if watch.since is not None:
                self._usual = max(self._usual, came - watch.since)
            watch.answered, watch.given_up, watch.heard = endpoint.answered, endpoint.given_up, now
            watch.since, watch.hangs, watch.pause = None, False, _FIRST_PAUSE
        elif watch.since is None and (asked or endpoint.given_up > watch.given_up):
            watch.since = now
        elif not asked and endpoint.given_up == watch.given_up:
            # Whoever waited has hung up: that was no wait for an answer.
            watch.since = None
        watch.asked = asked

    def _seems_to_hang(self, endpoint: Signs, watch: _Watch, now: float) -> bool:
        if watch.since is None:
            return False
        waited = watch.asked and now - watch.since >= max(_SHORTEST, _FACTOR * self._usual)
        if not waited and endpoint.given_up - watch.given_up < _GIVEN_UP:
            return False
        return self._others_answer(endpoint, watch.since)

    def _others_answer(self, endpoint: Signs, since: float) -> bool:
        others = [w for e, w in self._watched.items() if e is not endpoint and not w.hangs]
        answering = sum(w.heard > since for w in others)
        waiting = sum(w.since is not None for w in others if w.heard <= since)
        return answering > waiting

    def _try_again(self, endpoint: Signs, watch: _Watch, now: float) -> None:
        if watch.asked:
            watch.idle_since = None
        elif watch.idle_since is None:
            watch.idle_since = now
        elif now - watch.idle_since >= watch.pause:
            watch.hangs, watch.since, watch.idle_since = False, None, None
            watch.given_up = endpoint.given_up
            watch.pause = min(2 * watch.pause, _LONGEST_PAUSE)
