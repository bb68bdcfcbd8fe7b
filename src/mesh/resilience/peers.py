"""Whether an endpoint is worse than the others: what no breaker can tell that looks at one endpoint alone.

A share of failures, or a time, says little by itself: one service fails 2 % of its calls on a good day, another takes
two seconds for each. What says something is that one instance does so and those beside it, called by the same client
for the same things at the same time, do not. Envoy's outlier detection compares success rates of hosts that way, and
leaves alone who is below the mean by 1.9 standard deviations of the hosts' rates. Among three hosts that finds nobody
(no one of three can be further than 1.42 from their mean), and it asks for a hundred calls each in ten seconds. The
balancers of Finagle and Linkerd compare latencies, but only weigh by them, and round robin does not weigh. So, here:

  slow      a call took longer than 0.1 s and than `slow_call_factor` times the typical call of the same method to the
            other endpoints: the median of their medians. Methods are told apart because one may be a thousand times
            slower than another, and calls that come in turns with endpoints in turns can send all of one kind to one.
  outlier   failures (or slow calls) are a share of the last 40 calls that the policy calls too much, and the others,
            together, make that share incredible: by Chernoff's bound, n·KL(here ‖ there), so many would come about once
            in 160,000 times if this endpoint were like them. The bound holds for any rate and number of calls, where
            a standard deviation does not.
  limit     never is an endpoint left alone for being worse that would make more than half of them (Envoy's
            max_ejection_percent, at 50). So it never happens to all alike, nor to a single one.

Medians and the limit ask for a majority of endpoints that is well. Where most are slow, slow is what is typical; the
rules of the breaker that compare nothing still hold.

Left out: endpoints that this client has not called for half a minute prove nothing; what other clients see is not known
here. Large and small requests of one method are not told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import log
from typing import Protocol

from mesh.resilience.windows import Counts

# exp(-12) is 1 in 160,000. Lower and chance begins to eject: a client of ten endpoints looks some 100,000 times a day.
# Higher and it takes longer: 8 failures of 40 where the others have none come to 21, 20 slow of 40 to 84.
_SURPRISE = 12.0
# Others looked at. More would not know much better; a client may have a thousand.
_LOOKED_AT = 32
# Seconds without a call after which an endpoint is no witness of how things are.
_STALE = 30.0


class Member(Protocol):
    """What an endpoint's breaker tells about it."""

    heard: float
    """When the last call ended that says something."""

    @property
    def is_closed(self) -> bool:
        """Whether it is called as usual."""
        ...

    def recent(self, now: float) -> Counts:
        """How its last calls went."""
        ...

    def typical(self, kind: str) -> float | None:
        """How many seconds a good call of this kind mostly takes; None if too few were made."""
        ...


class Peers:
    """The endpoints that one client calls for one service. Not locked: one loop, or one lock, owns it."""

    __slots__ = ("_members",)

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self._members = list(members)

    def __repr__(self) -> str:
        return f"Peers({self._members!r})"

    def replace(self, members: Iterable[Member]) -> None:
        """Compare these from now on: those that may be called."""
        self._members = list(members)

    def add(self, member: Member) -> None:
        """Compare one more."""
        self._members.append(member)

    def may_eject(self, one: Member) -> bool:
        """Whether not more than half would be left alone, were this one too."""
        out = sum(not member.is_closed for member in self._members if member is not one)
        return one in self._members and 2 * (out + 1) <= len(self._members)

    def others(self, than: Member, now: float) -> Counts:
        """Return how the last calls to the others went, together."""
        counts = [other.recent(now) for other in self._witnesses(than, now)]
        return Counts(*map(sum, zip(*counts, strict=True))) if counts else Counts(0, 0, 0, 0)

    def typical(self, than: Member, kind: str, now: float) -> float | None:
        """Return how long a call of this kind mostly takes at the others; None if that is not known."""
        found = sorted(time for other in self._witnesses(than, now) if (time := other.typical(kind)) is not None)
        # Of an even number the slower of the middle ones: in doubt nobody is slow.
        return found[len(found) // 2] if found else None

    def _witnesses(self, than: Member, now: float) -> Iterator[Member]:
        members = self._members
        begin = members.index(than) + 1 if than in members else 0
        for other in (members[begin:] + members[:begin])[:_LOOKED_AT]:
            if other is not than and other.is_closed and now - other.heard <= _STALE:
                yield other


def stands_out(bad: int, of: int, others_bad: int, others: int) -> bool:
    """Tell whether `bad` of `of` calls is far more than chance makes of the rate that the others have."""
    here, there = bad / of, (others_bad + 0.5) / (others + 1)
    if here <= there:
        return False
    surprise = here * log(here / there)
    if here < 1:
        surprise += (1 - here) * log((1 - here) / (1 - there))
    return of * surprise >= _SURPRISE
