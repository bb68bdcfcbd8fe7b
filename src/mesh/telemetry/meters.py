"""Counters, gauges and histograms that are Prometheus's own as soon as anybody could read them.

prometheus_client brings http.server, urllib and wsgiref, which cost a process more time before its first call than the
rest of the mesh. But nobody can read a sample before somebody in the process has imported that library, for a page of
ours (`pages`) or for one of the program's own. Until then samples are plain numbers here. That import itself, whoever
it is from, makes the metrics and hands the numbers over, so it finds all that was counted. To the library's registry
each metric is a collector of its own: it has calls handed over that are counted elsewhere for a while (`tally`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from math import inf
from types import ModuleType
from typing import Any

from mesh.telemetry import tally

_LIBRARY = "prometheus_client"
# Between those who count, in any thread, and the import. One for all: it is held for the time of an addition.
_HELD = threading.RLock()


class Series:
    """The number of one set of labels, of a counter or a gauge. `_real` is what it has become."""

    __slots__ = ("_amount", "_function", "_real")

    def __init__(self) -> None:
        self._amount = 0.0
        self._function: Callable[[], float] | None = None
        self._real: Any = None

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        with _HELD:
            if self._real is None:
                self._amount += amount
                return
        self._real.inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Take from it."""
        self.inc(-amount)

    def set(self, value: float) -> None:
        """Have it be so much."""
        with _HELD:
            if self._real is None:
                self._amount = value
                return
        self._real.set(value)

    def set_function(self, function: Callable[[], float]) -> None:
        """Have it be what a function says when it is read."""
        with _HELD:
            self._function = function
            if self._real is not None:
                self._real.set_function(function)

    def become(self, real: Any) -> None:
        """Hand over to the library's."""
        with _HELD:
            if self._function is not None:
                real.set_function(self._function)
            else:
                real.inc(self._amount)
            self._real = real


class Times:
    """The same of a histogram. Its parts have the names that the library's have, for whoever adds many at once."""

    __slots__ = ("_buckets", "_sum", "_upper_bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._upper_bounds = [*bounds, inf]
        self._buckets = [Series() for _ in self._upper_bounds]
        self._sum = Series()

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._buckets[bisect_left(self._upper_bounds, seconds)].inc()
        self._sum.inc(seconds)

    def become(self, real: Any) -> None:
        """Hand over to the library's."""
        self._sum.become(real._sum)
        for bucket, its in zip(self._buckets, real._buckets, strict=True):
            bucket.become(its)


class Meter:
    """A metric."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = (), **options: Any) -> None:
        self._made_of = (name, documentation, labels)
        self._options = options
        self._series: dict[tuple[str, ...], Any] = {}
        self._real: Any = None
        _meters.append(self)
        if _LIBRARY in sys.modules:
            self.become(importlib.import_module(_LIBRARY))
        elif not labels:
            self.labels()  # there from the beginning, as 0

    def labels(self, *values: str) -> Any:
        """Return the series with these labels: the library's own, once there is one."""
        with _HELD:
            if self._real is not None:
                return self._real.labels(*values) if values else self._real
            found = self._series.get(values)
            if found is None:
                found = self._series[values] = self._new_series()
            return found

    def inc(self, amount: float = 1.0) -> None:
        """Add to the one series of a metric without labels."""
        self.labels().inc(amount)

    def set_function(self, function: Callable[[], float]) -> None:
        """Have that series be what a function says."""
        self.labels().set_function(function)

    def become(self, library: Any) -> None:
        """Hand over to the library's metric."""
        with _HELD:
            real = getattr(library, type(self).__name__)(*self._made_of, **self._options, registry=None)
            for values, series in self._series.items():
                series.become(real.labels(*values) if values else real)
            self._real = real
            library.REGISTRY.register(self)

    def describe(self) -> Any:
        """Return what it is called, as the library's registry asks for it."""
        return self._real.describe()

    def collect(self) -> Any:
        """Return its samples, as the library's registry asks for them."""
        tally.flush()
        return self._real.collect()

    def _new_series(self) -> Any:
        return Series()


class Counter(Meter):
    """Only grows."""


class Gauge(Meter):
    """Goes up and down."""


class Histogram(Meter):
    """Counts by size."""

    def _new_series(self) -> Any:
        return Times(self._options["buckets"])


_meters: list[Meter] = []


class _Import:
    """Stands before Python's own finders, leaves every module to them, and hears when the library has been loaded."""

    def __init__(self) -> None:
        self._asked = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _LIBRARY or self._asked:
            return None
        self._asked = True  # the others are asked by way of us
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asked = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loading(spec.loader)  # type: ignore[assignment]  # is one in all that imports ask of it
        return spec


class _Loading:
    """Has the library loaded by whoever loads it, and nothing of this is left in it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _look_for_files()
        for meter in _meters:
            meter.become(module)


def _look_for_files() -> None:
    # As the library decides it, once, when it is imported: its numbers are files then, which other processes read.
    if {"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} & set(os.environ):
        tally.at_once()


if _LIBRARY not in sys.modules:
    sys.meta_path.insert(0, _Import())
else:
    _look_for_files()
