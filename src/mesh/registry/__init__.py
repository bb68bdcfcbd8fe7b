"""Who serves what: the registrar keeps us known to the others, the resolver keeps the others known to us.

`record` is the form in the store; `roster`, `directory` and `claim` decide; `mirror`, `resolver` and `registrar` wait.
Whoever needs the form alone does not pay for the loops: a process's first call waits for every import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.registry.registrar import Registrar as Registrar
    from mesh.registry.resolver import Resolver as Resolver
    from mesh.registry.resolver import Subscription as Subscription

__all__ = ["Registrar", "Resolver", "Subscription"]

_HOMES = {"Registrar": "registrar", "Resolver": "resolver", "Subscription": "resolver"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
