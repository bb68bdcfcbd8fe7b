"""Who counts as present: the decision between what the store shows and what is published, without waiting.

A key that vanishes without its instance having said goodbye (state `draining` or `paused`) is a suspicion, not a fact.
- If up to half of a service's instances vanish, they are dead: each of their leases ran out by itself. They go at once.
- If more than half vanish, something happened to the store rather than to them: a prefix deleted by accident, data
  lost, leases expired while nobody could renew them. They stay, as suspects, and the View is marked stale. Whoever is
  alive is back within about a second, because registrars watch their own keys; who is not back after `SUSPECT_FOR`
  is dropped. Meanwhile connections tell clients the truth: a suspect that is dead refuses them.

Losses are summed up over the same time, so that a service vanishing one by one is caught too.
Prior art: Eureka's self-preservation (a share of heartbeats, for ever); this one is shorter, because here the instances
repair their registration themselves. Left out: asking the suspects' health; their callers do that anyway.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.instance import Instance, State, View

# Seconds. Longer than a lease of 10 s, the jitter and a slow etcd together; the cost of more is that a service whose
# instances were all killed at once is shown for longer.
SUSPECT_FOR = 15.0


class Roster:
    """The instances of one service.

    `_present` is what the store shows; `_suspects` who vanished but stays, and until when; `_dropped` who vanished and
    went, and until when that counts.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._present: dict[str, Instance] = {}
        self._suspects: dict[str, tuple[Instance, float]] = {}
        self._dropped: dict[str, float] = {}
        self._stale = False
        self._known = False

    def __repr__(self) -> str:
        return f"Roster({self._service}, present={sorted(self._present)}, suspects={sorted(self._suspects)})"

    @property
    def is_empty(self) -> bool:
        """Whether nobody is here, nor suspected to be."""
        return not self._present and not self._suspects

    def update(self, seen: Mapping[str, Instance], now: float) -> View:
        """Take what the store shows now, the whole of it, and return what to publish."""
        self._settle(now)
        vanished = {number: i for number, i in self._present.items() if number not in seen}
        silently = {number: i for number, i in vanished.items() if i.state is State.READY}
        if self._is_too_many(silently):
            self._suspects |= {number: (i, now + SUSPECT_FOR) for number, i in silently.items()}
        else:
            self._dropped |= dict.fromkeys(silently, now + SUSPECT_FOR)
        for number in seen:
            self._suspects.pop(number, None)
            self._dropped.pop(number, None)
        self._present = dict(seen)
        self._known = True
        return self.view()

    def tick(self, now: float) -> View:
        """Let time pass: drop suspects whose time is over."""
        self._settle(now)
        return self.view()

    def mark_stale(self, stale: bool) -> View:
        """Note whether the store can be reached."""
        self._stale = stale
        return self.view()

    def view(self) -> View:
        """Return what is to be published now."""
        if not self._known:
            return View(self._service)
        instances = [*self._present.values(), *(i for i, _ in self._suspects.values())]
        return View.of(self._service, instances, stale=self._stale or bool(self._suspects))

    def _is_too_many(self, silently: Mapping[str, Instance]) -> bool:
        if not silently:
            return False
        lost = len(silently) + len(self._dropped) + len(self._suspects)
        ready = sum(i.state is State.READY for i in self._present.values())
        return 2 * lost > ready + len(self._dropped) + len(self._suspects)

    def _settle(self, now: float) -> None:
        self._suspects = {number: (i, until) for number, (i, until) in self._suspects.items() if until > now}
        self._dropped = {number: until for number, until in self._dropped.items() if until > now}
