"""A run in a sentence, and its faults in words."""

from __future__ import annotations

from mesh.simulation.report import Report
from mesh.simulation.scale import seconds
from mesh.simulation.scenario import Fault, FaultKind, Scenario


def verdict(report: Report) -> str:
    """Say whether all is well again, and since when."""
    trigger = report.trigger
    if trigger is None:
        return f"{report.phases[0].success_rate:.2%} of the calls answered in time"
    if report.recovered is None:
        after = report.phase("after")
        return (
            f"not well again: in the {seconds(after.end - after.start)} after the fault {after.success_rate:.1%} "
            f"of the calls were answered, at a load of {after.load:.0%}"
        )
    if report.recovered == 0:
        return "well again as soon as the fault was over"
    return f"well again {seconds(report.recovered)} after the fault was over"


def faults_told(scenario: Scenario) -> str:
    """Name the faults, in order."""
    return ", ".join(_told(fault, scenario) for fault in sorted(scenario.faults, key=lambda f: f.at))


def _told(fault: Fault, scenario: Scenario) -> str:
    all_of_them = scenario.servers.count
    who = f"{fault.servers} of {all_of_them}" if fault.servers < all_of_them else f"all {all_of_them}"
    match fault.kind:
        case FaultKind.BURST:
            return f"{fault.factor:g} × the calls"
        case FaultKind.SLOW:
            return f"{who} slower by {fault.factor:g} ×"
        case FaultKind.ERRORS:
            return f"{who} failing {fault.rate:.0%}"
        case FaultKind.CRASH:
            return f"{who} down"
        case FaultKind.HANG:
            return f"{who} hung"
        case FaultKind.ROLLING_RESTART:
            return f"{who} restarted in turn"
