"""How loaded this process is, told with its answers: ORCA reports in the trailing metadata (gRFC A51), for clients that
balance by them (gRFC A58), ours and those of Go, Java and C++.

Only services whose contract says `balancer: {load_reports: true}` report; the others pay nothing. The report is made
four times a second at most. Two binary entries cost several per cent of a small call, so not every answer of a busy
server carries them: the first few after each making do, and one in eight beyond. Clients keep the last report they saw.

Utilisation is the largest of two things, either of which can be what runs out first:
  - CPU of the process, 1 being one core. Python computes on one at a time.
  - Lateness of the event loop: a timer that rings 0.1 s late is a loop that is full. Handlers that block show here,
    though they may use no CPU at all.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from math import exp

from grpcmesh.v1 import load_pb2
from mesh.clock import Clock
from mesh.resilience.outcome import Outcome, outcome_of
from mesh.timers import call_later

ENTRIES = ("endpoint-load-metrics-bin", "mesh-load-bin")
"""The report goes under gRPC's name for it and under ours: gRPC's core keeps the former from Python clients (tried with
grpcio 1.85: it is among the entries that it takes for itself)."""
# Old enough to hold some calls, young enough for a client that reacts within a second.
_PERIOD = 0.25
_FIRST, _SHARE = 8, 1 / 8
# Multiples of the golden ratio's fraction, modulo 1, are spread evenly and fall in step with nobody's turns.
_SPREAD = 0.6180339887498949
# Seconds over which numbers are smoothed. A58 takes the latest report as it is, so it has to be a calm one.
_SMOOTHING = 3.0
_FULL = 0.1
"""Seconds of lateness at which a loop counts as full. Callers with deadlines of a second notice about then."""
_LOOK_AHEAD = 0.05
# A58 ignores a report of no utilisation at all, and an idle process is the very one to send calls to.
_IDLE = 0.001


def process_cpu() -> float:
    """Return the CPU seconds that this process has taken."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class LoadMeter:
    """Counts calls, watches CPU and loop. One event loop owns it; it does nothing while no call is answered."""

    def __init__(self, clock: Clock, cpu: Callable[[], float] = process_cpu) -> None:
        self._clock = clock
        self._cpu = cpu
        self._calls = self._failures = 0
        """Since `_since`."""
        self._since = clock.monotonic()
        self._cpu_then = cpu()
        self._next = self._since + _PERIOD
        self._lateness = 0.0
        self._report = load_pb2.OrcaLoadReport()
        self._told: tuple[tuple[str, bytes], ...] = ()

    def __repr__(self) -> str:
        return f"LoadMeter({self._report.application_utilization:.2f}, {self._report.rps_fractional:.0f} calls/s)"

    def answered(self, code: str) -> None:
        """Count a call that ended so."""
        self._calls += 1
        self._failures += outcome_of(code) is Outcome.FAILURE

    def tell(self) -> tuple[tuple[str, bytes], ...]:
        """Return the entries for an answer's trailing metadata: the report, or none."""
        now = self._clock.monotonic()
        if now >= self._next:
            self._look(now)
        calls = self._calls
        return self._told if calls < _FIRST or calls * _SPREAD % 1.0 < _SHARE else ()

    def _look(self, now: float) -> None:
        elapsed = now - self._since
        share = 1.0 - exp(-elapsed / _SMOOTHING) if self._told else 1.0
        report, cpu = self._report, self._cpu()
        for name, found in (
            ("cpu_utilization", (cpu - self._cpu_then) / elapsed),
            ("rps_fractional", self._calls / elapsed),
            ("eps", self._failures / elapsed),
        ):
            before = getattr(report, name)
            setattr(report, name, before + (found - before) * share)
        report.application_utilization = max(report.cpu_utilization, self._lateness / _FULL, _IDLE)
        told = report.SerializeToString()
        self._told = tuple((entry, told) for entry in ENTRIES)
        self._since, self._next, self._cpu_then = now, now + _PERIOD, cpu
        self._calls = self._failures = 0
        due = now + _LOOK_AHEAD
        call_later(_LOOK_AHEAD, partial(self._rang, due, share))

    def _rang(self, due: float, share: float) -> None:
        late = max(self._clock.monotonic() - due, 0.0)
        self._lateness += (late - self._lateness) * share
