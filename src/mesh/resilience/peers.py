"""Whether an endpoint is worse than the others: what no breaker can tell that looks at one endpoint alone.

A share of failures, or a time, says little by itself: one service fails 2 % of its calls on a good day, another takes
two seconds for each. What says something is that one instance does so and those beside it, called by the same client
for the same things at the same time, do not. Envoy's outlier detection compares success rates of hosts that way, and
leaves alone who is below the mean by 1.9 standard deviations of the hosts' rates. Among three hosts that finds nobody
(no one of three can be further than 1.42 from their mean), and it asks for a hundred calls each in ten seconds. The
balancers of Finagle and Linkerd compare latencies, but only weigh by them, and round robin does not weigh. So, here:

  slow      a call took longer than 0.1 s and than `slow_call_factor` times what calls of the same method mostly take:
            the median of the endpoints' medians, one for all at any time. Methods are told apart because one may be a
            thousand times slower than another, and calls that come in turns with endpoints in turns can send all of one
            kind to one.
  outlier   failures (or slow calls) are a share of the last 40 calls that the policy calls too much, and what the
            others had makes it incredible that all are alike: the likelihood ratio of two rates against one, which
            holds for any rates and numbers of calls, where a standard deviation does not. Between equals it comes to so
            much less than once in 20,000 times.
  limit     never is an endpoint left alone for being worse that would make more than half of them (Envoy's
            max_ejection_percent, at 50). So it never happens to all alike, nor to a single one.

Medians and the limit ask for half of the endpoints to be well. Where most are slow, slow is what is typical; the rules
of the breaker that compare nothing still hold.

Left out: endpoints that this client has not called for half a minute prove nothing; what other clients see is not known
here. Large and small requests of one method are not told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf, log
from typing import Protocol

from mesh.resilience.windows import Counts

# Lower and chance begins to eject: a client of ten endpoints has 10,000 times a day 40 new calls to look at. Higher and
# it takes longer: 7 failures of 40 where two others have none in 200 come to 13, 20 slow ones where they have none in
# 80 to 26.
_SURPRISE = 12.0
# Others looked at. More would not know much better; a client may have a thousand.
_LOOKED_AT = 32
# Seconds that a limit for slow calls holds. Working it out costs a microsecond per endpoint.
_HOLDS = 0.5
# Kinds of calls whose limits are remembered. Names of methods that are made up must not fill the memory.
_KINDS = 256
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

    def recent(self, now: float, calls: int) -> Counts:
        """How its last so many calls went."""
        ...

    def typical(self, kind: str) -> float | None:
        """How many seconds a good call of this kind mostly takes; None if too few were made."""
        ...


class Peers:
    """The endpoints that one client calls for one service. Not locked: one loop, or one lock, owns it."""

    __slots__ = ("_limits", "_members")

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self._members = list(members)
        self._limits: dict[str, tuple[float, float, int]] = {}
        """How long a call of a kind mostly takes, of how many endpoints, and until when that is believed."""

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

    def others(self, than: Member, now: float, calls: int) -> Counts:
        """Return how the last so many calls to each of the others went, together."""
        counts = [other.recent(now, calls) for other in self._witnesses(than, now)]
        return Counts(*map(sum, zip(*counts, strict=True))) if counts else Counts(0, 0, 0, 0)

    def typical(self, kind: str, now: float, witnesses: int = 2) -> float:
        """Return how long a call of this kind mostly takes; infinity if fewer endpoints than so many can tell."""
        until, typical, known = self._limits.get(kind, (-inf, inf, 0))
        if now >= until:
            found = sorted(time for one in self._witnesses(None, now) if (time := one.typical(kind)) is not None)
            # Of an even number the quicker of the middle ones: of two, one may be slow.
            known = len(found)
            typical = found[(known - 1) // 2] if known else inf
            if len(self._limits) >= _KINDS:
                self._limits.clear()
            self._limits[kind] = now + _HOLDS, typical, known
        return typical if known >= witnesses else inf

    def _witnesses(self, than: Member | None, now: float) -> Iterator[Member]:
        members = self._members
        begin = members.index(than) + 1 if than in members else 0
        for other in (members[begin:] + members[:begin])[:_LOOKED_AT]:
            if other is not than and other.is_closed and now - other.heard <= _STALE:
                yield other


def stands_out(bad: int, of: int, others_bad: int, others: int) -> bool:
    """Tell whether `bad` of `of` calls is far more than chance makes of what the others have: the likelihood ratio of
    a rate for each against one rate for all (the G-test, halved).
    """
    if bad * others <= others_bad * of:
        return False
    alike = (bad + others_bad) / (of + others)
    return of * _divergence(bad / of, alike) + others * _divergence(others_bad / others, alike) >= _SURPRISE


def _divergence(seen: float, expected: float) -> float:
    """Return Kullback and Leibler's, of two coins."""
    heads = seen * log(seen / expected) if seen else 0.0
    return heads + ((1 - seen) * log((1 - seen) / (1 - expected)) if seen < 1 else 0.0)
