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
from mesh.registry.lineup import Lineup

# Seconds. Longer than a lease of 10 s, the jitter and a slow etcd together; the cost of more is that a service whose
# instances were all killed at once is shown for longer.
SUSPECT_FOR = 15.0


class Roster:
    """The instances of one service.

    `_present` is what the store shows; `_suspects` who vanished but stays, and until when; `_dropped` who vanished and
    went, and until when that counts. `_lineup` has those who are present or suspects, `_view` what was made of it while
    that holds: a change costs by its own size, not by the fleet's.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._present: dict[str, Instance] = {}
        self._suspects: dict[str, tuple[Instance, float]] = {}
        self._dropped: dict[str, float] = {}
        self._lineup = Lineup()
        self._view: View | None = None
        self._stale = False
        self._known = False

    def __repr__(self) -> str:
        return f"Roster({self._service}, present={sorted(self._present)}, suspects={sorted(self._suspects)})"

    @property
    def is_empty(self) -> bool:
        """Whether nobody is here, nor suspected to be."""
        return not self._present and not self._suspects

    @property
    def counts(self) -> Mapping[State, int]:
        """How many are shown in each state."""
        return self._lineup.counts

    def update(self, seen: Mapping[str, Instance], now: float) -> View:
        """Take what the store shows now, the whole of it, and return what to publish."""
        return self.change({**dict.fromkeys(self._present.keys() - seen.keys()), **seen}, now)

    def change(self, news: Mapping[str, Instance | None], now: float) -> View:
        """Take what the store shows other than before, None for who is not there any more; return what to publish."""
        self._settle(now)
        silently = self._silently(news)
        if self._is_too_many(silently):
            self._suspects |= {i.id: (i, now + SUSPECT_FOR) for i in silently}
        else:
            self._dropped |= {i.id: now + SUSPECT_FOR for i in silently}
        for number, instance in news.items():
            if instance is None:
                self._present.pop(number, None)
                if number not in self._suspects:
                    self._lineup.drop(number)
            else:
                self._present[number] = instance
                self._suspects.pop(number, None)
                self._dropped.pop(number, None)
                self._lineup.put(instance)
        self._known = True
        self._view = None
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
        stale = self._stale or bool(self._suspects)
        if self._view is None or self._view.stale is not stale:
            self._view = View(self._service, self._lineup.shown(), known=True, stale=stale)
        return self._view

    def _silently(self, news: Mapping[str, Instance | None]) -> list[Instance]:
        """Who vanished without a goodbye."""
        vanished = (self._present.get(number) for number, instance in news.items() if instance is None)
        return [i for i in vanished if i is not None and i.state is State.READY]

    def _is_too_many(self, silently: list[Instance]) -> bool:
        if not silently:
            return False
        lost = len(silently) + len(self._dropped) + len(self._suspects)
        ready = self._lineup.counts[State.READY]  # with the suspects, who all were
        return 2 * lost > ready + len(self._dropped)

    def _settle(self, now: float) -> None:
        for number in [number for number, (_, until) in self._suspects.items() if until <= now]:
            del self._suspects[number]
            self._lineup.drop(number)
            self._view = None
        for number in [number for number, until in self._dropped.items() if until <= now]:
            del self._dropped[number]
