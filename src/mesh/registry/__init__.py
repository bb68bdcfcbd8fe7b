"""Who serves what: the registrar keeps us known to the others, the resolver keeps the others known to us.

`record` is the form in the store; `roster`, `directory` and `claim` decide; `mirror`, `resolver` and `registrar` wait.
"""

from mesh.registry.registrar import Registrar
from mesh.registry.resolver import Resolver, Subscription

__all__ = ["Registrar", "Resolver", "Subscription"]
