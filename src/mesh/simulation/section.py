"""One mapping of a scenario's file, read key by key; each mistake is one sentence that says where, what, and what to
write instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from mesh.errors import MeshError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
# YAML 1.1 reads a bare `off` as false; a quoted one, or one from a command line, may arrive as text.
_OFF = (False, "off", "no", "none")


class ScenarioError(MeshError, ValueError):
    """A scenario cannot be read; the text says where and what to write."""


class Section:
    """A mapping at some place in the file. `finish` complains of what nobody asked for."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, Mapping):
            keys = f"{path} is {_said(value)}" if path else f"the scenario is {_said(value)}"
            raise ScenarioError(f"{keys}: write a mapping of names to values")
        self._value = {str(k): v for k, v in value.items()}
        self._asked: set[str] = set()
        self.path = path

    def name(self, key: str) -> str:
        """Return the key with its place before it."""
        return f"{self.path}.{key}" if self.path else key

    def value(self, key: str) -> object:
        """Return what stands there, None if nothing does."""
        self._asked.add(key)
        return self._value.get(key)

    def section(self, key: str) -> Section:
        """Return the mapping that stands there, an empty one if nothing does."""
        value = self.value(key)
        return Section({} if value is None else value, self.name(key))

    def is_off(self, key: str) -> bool:
        """Whether it is switched off."""
        value = self.value(key)
        return value is False or (isinstance(value, str) and value.lower() in _OFF)

    def optional(self, key: str) -> Section | None:
        """Return the mapping that stands there, or None where it is off. `on` is the same as nothing: the defaults."""
        if self.is_off(key):
            return None
        if self.value(key) in (True, "on", "yes"):
            return Section({}, self.name(key))
        return self.section(key)

    def sections(self, key: str) -> Iterator[Section]:
        """Yield the mappings of the list that stands there."""
        value = self.value(key)
        if value is None:
            return
        if not isinstance(value, list):
            raise self.error(key, "write a list, each item after a dash")
        for number, item in enumerate(value):
            yield Section(item, f"{self.name(key)}.{number}")

    def number(
        self, key: str, default: float | None = None, *, low: float = 0.0, high: float = math.inf, above: bool = False
    ) -> float:
        """Return a number from `low` to `high`, `low` itself left out if `above`."""
        value = self.value(key)
        if value is None:
            return self._default(key, default, "a number")
        wanted = f"a number {'above' if above else 'from'} {low:g}" + (f" to {high:g}" if high < math.inf else "")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, f"write {wanted}")
        if not low <= value <= high or (above and value == low):
            raise self.error(key, f"write {wanted}")
        return float(value)

    def whole(self, key: str, default: int | None = None, *, low: int = 1, high: int = 1_000_000) -> int:
        """Return a whole number from `low` to `high`."""
        value = self.value(key)
        if value is None:
            return int(self._default(key, default, "a whole number"))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"write a whole number from {low} to {high}")
        return value

    def duration(self, key: str, default: float | None = None, *, above: bool = True) -> float:
        """Return seconds, from a number or from a text such as "250ms"."""
        value = self.value(key)
        if value is None:
            return self._default(key, default, "a time such as 250ms, 5s or 2m")
        seconds = _seconds(value)
        if seconds is None or seconds < 0 or (above and seconds == 0):
            raise self.error(key, "write a time such as 250ms, 5s or 2m" + (", more than nothing" if above else ""))
        return seconds

    def choice(self, key: str, of: Collection[str], default: str | None = None) -> str:
        """Return one of several words."""
        value = self.value(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or value not in of:
            guess = get_close_matches(str(value), of, 1)
            meant = f"did you mean {guess[0]}? Write" if guess else "write"
            said = f"is {_said(value)}" if value is not None else "is missing"
            raise ScenarioError(f"{self.name(key)} {said}: {meant} one of {', '.join(of)}")
        return value

    def text(self, key: str) -> str:
        """Return a text, empty if there is none."""
        value = self.value(key)
        return " ".join(str(value).split()) if value is not None else ""

    def finish(self) -> None:
        """Complain of a key that nobody asked for."""
        for key in self._value:
            if key not in self._asked:
                guess = get_close_matches(key, self._asked, 1)
                meant = f"did you mean {guess[0]}?" if guess else f"known are {', '.join(sorted(self._asked))}"
                raise ScenarioError(f"{self.name(key)} means nothing: {meant}")

    def error(self, key: str, what: str) -> ScenarioError:
        """Return the error about the value of a key."""
        return ScenarioError(f"{self.name(key)} is {_said(self._value.get(key))}: {what}")

    def _default(self, key: str, default: float | None, wanted: str) -> float:
        if default is None:
            raise ScenarioError(f"{self.name(key)} is missing: write {wanted}")
        return default


def _seconds(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(found[1]) * _UNITS[found[2]] if found else None


def _said(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return repr(value)[:80]
