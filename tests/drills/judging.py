"""From what was seen to rows: figures, whether the rule was kept, and in what it was not. Nothing here waits."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from drills.fault import Fault, Rule, Site
from support.load import Outcome, Report

Row = dict[str, Any]


class Moments(Protocol):
    """When what was of a fault, and whether it was a shorter one; a Site knows it."""

    @property
    def injected(self) -> float: ...
    @property
    def healed(self) -> float: ...
    @property
    def drained(self) -> float | None: ...
    @property
    def short(self) -> bool: ...


# How a call is told that there is no room for it.
_SHED = ("RESOURCE_EXHAUSTED", "HTTP 429")
# A plain gRPC channel that was refused waits so long at most before it connects again the second time.
_RECONNECT = 3.0


def rows(fault: Fault, site: Site, reports: Mapping[str, Report], amplified: Mapping[str, float]) -> list[Row]:
    """Make the rows of a drill, one per road."""
    if fault.rule.goodput is not None:
        _note_goodput(site, fault.rule.goodput, reports)
    note_attempts(fault.rule, site)
    return [_row(fault, site, reports[road], amplified.get(road, 0.0)) for road in site.roads]


def note_attempts(rule: Rule, site: Site) -> None:
    """Note what each road made of its calls while the fault lasted."""
    for road, tally in site.borne.items() if rule.attempts is not None else ():
        site.fact("attempts per call while the fault lasted", tally.amplification, rule.attempts, road)


def _note_goodput(site: Site, share: float, reports: Mapping[str, Report]) -> None:
    """Note what was answered well under the fault, of what was at best, over all roads: they share the instances."""
    calls = [call for report in reports.values() for call in report.calls]

    def good(begin: float, end: float) -> float:
        return sum(call.code == "OK" and begin <= call.start < end for call in calls) / (end - begin)

    peak = max(good(*stretch) for stretch in site.peaks)
    got = good(site.injected, site.healed)
    site.fact(f"goodput short of the peak of {peak:.0f} a second, as a share of it", 1 - got / peak, 1 - share)


def _row(fault: Fault, site: Site, report: Report, attempts: float) -> Row:
    begin = site.injected
    after = [call for call in report.calls if call.start >= begin] or list(report.calls)
    shed = [call for call in report.calls if begin <= call.start < site.healed and call.code in _SHED]
    if fault.rule.refusals is not None and shed:
        slowest = _percentile(shed, 0.99)
        site.fact("p99 of refusals, seconds", slowest, None, report.road)
    broken = broken_by(fault.rule, site, report) + _refusals(fault.rule, shed)
    if fault.rule.attempts is not None and attempts > fault.rule.attempts:
        broken.append(f"{attempts:.3f} attempts per call, at most {fault.rule.attempts:g} may be")
    facts = [fact for fact in site.facts if report.road in fact.roads]
    broken += [str(fact) for fact in facts if not fact.met]
    return {
        "fault": fault.name,
        "road": report.road,
        "calls": len(report.calls),
        "failed": len(report.failed),
        "p50_ms": round(_percentile(after, 0.5) * 1e3, 1),
        "p99_ms": round(_percentile(after, 0.99) * 1e3, 1),
        "recover_s": round(_recovered(report, fault.rule.slow, begin), 2),
        "attempts_per_call": round(attempts, 3),
        "pass": fault.passes,
        "met": not broken,
        "facts": [str(fact) for fact in facts if fact.met],
        "missed": broken,
        "note": fault.note,
        "short": site.short,
        "rate": site.setup.rate,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def broken_by(rule: Rule, site: Moments, report: Report) -> list[str]:
    """Say what calls did not keep, a sentence each."""
    found: list[str] = []
    failed, calls = report.failed, len(report.calls)
    if site.drained is not None:
        again = site.healed + _RECONNECT
        in_flight = [call for call in failed if call.start < site.drained or call.start > again]
        found += [f"{len(in_flight)} calls failed that were begun while it drained"] if in_flight else []
    if rule.failed is not None and len(failed) > rule.failed:
        found.append(f"{len(failed)} failed, at most {rule.failed} may ({_kinds(failed)})")
    if rule.success is not None and calls - len(failed) < rule.success * calls:
        found.append(f"{100 * (1 - len(failed) / calls):.2f} % succeeded ({_kinds(failed)})")
    if rule.recover is not None and (taken := _recovered(report, rule.slow, site.injected)) > rule.recover:
        found.append(f"bad calls until {taken:.2f} s after the injection, at most {rule.recover:g} s")
    if rule.recover_healed is not None and (taken := _recovered(report, rule.slow, site.healed)) > rule.recover_healed:
        found.append(f"bad calls until {taken:.2f} s after the healing, at most {rule.recover_healed:g} s")
    if rule.p99_factor is not None:
        healthy = report.percentile(0.99, until=site.injected)
        later = report.percentile(0.99, since=site.injected + rule.p99_after, until=site.healed)
        if later > rule.p99_factor * healthy:
            found.append(
                f"p99 {later * 1e3:.0f} ms from {rule.p99_after:g} s on, {healthy * 1e3:.0f} ms before the fault"
            )
    if rule.calls is not None and calls < rule.calls and not site.short:
        found.append(f"only {calls} calls were made, {rule.calls} are asked for")
    return found + _texts(rule, failed)


def _refusals(rule: Rule, shed: Sequence[Outcome]) -> list[str]:
    half = _percentile(shed, 0.5) if shed else 0.0
    too_slow = rule.refusals is not None and half > rule.refusals
    return [f"half of {len(shed)} refusals took over {half * 1e3:.0f} ms"] if too_slow else []


def _texts(rule: Rule, failed: Sequence[Outcome]) -> list[str]:
    strange = [call for call in failed if rule.codes is not None and call.code not in rule.codes]
    telling = [call for call in failed if any(word.lower() in call.detail.lower() for word in rule.words)]
    found = [f"{len(strange)} failed with another code ({_kinds(strange)})"] if strange else []
    return found + ([f"{len(telling)} errors tell too much ({_kinds(telling)})"] if telling else [])


def _kinds(calls: Sequence[Outcome]) -> str:
    """Tell how many failed how, the most frequent first; writes apart, they have more to wait for."""
    counted: dict[str, int] = {}
    for call in calls:
        what = f"{call.code} of {'reads' if call.kind.endswith(('get', 'list')) else 'writes'}"
        counted[what] = counted.get(what, 0) + 1
    return ", ".join(f"{count} {code}" for code, count in sorted(counted.items(), key=lambda kind: -kind[1]))


def _recovered(report: Report, slow: float, since: float) -> float:
    """How long after a moment the last bad call began; 0 if none was bad."""
    bad = [call.start for call in report.calls if call.code != "OK" or call.seconds > slow]
    return max([start - since for start in bad if start >= since], default=0.0)


def _percentile(calls: Sequence[Outcome], share: float) -> float:
    taken = sorted(call.seconds for call in calls)
    return taken[min(int(share * len(taken)), len(taken) - 1)]
