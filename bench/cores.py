"""Who works on which core, so that a comparison measures its arms and not where the scheduler happens to put them.

A request wakes up three processes: who calls, what is measured, and what stands behind it. Left to themselves on two
cores they share one or the other for some milliseconds and then do not, and a call costs a fifth more or less for it.

Which way a comparison's processes are placed (`Cores`): "apart" gives what is measured a core to itself, and the
others the rest; where everything is measured, who calls has its own. "one" puts all on one: for calls that are made one
after the other, where two cores would fall asleep and be woken up by turns. "any" leaves it to the scheduler.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

Cores = Literal["apart", "one", "any"]


def place(cores: Cores, measured: Collection[int], beside: Iterable[int]) -> None:
    """Place this process and others; the `measured` are among all of these."""
    everyone = {os.getpid(), *beside}
    if cores == "one":
        part(everyone, ())
    elif cores == "apart":
        part(measured if everyone.difference(measured) else {os.getpid()}, everyone)


def part(measured: Collection[int], rest: Iterable[int]) -> None:
    """Give the processes `measured` a core to themselves, with all their threads, and `rest` what is left of them.

    On one core there is nothing to part. A process that is gone needs no core.
    """
    *others, own = sorted(os.sched_getaffinity(0))
    if others:
        for pid in measured:
            _settle(pid, [own])
        for pid in set(rest) - set(measured):
            _settle(pid, others)


def _settle(pid: int, cores: Collection[int]) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)
