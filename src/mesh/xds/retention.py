"""Which instances of a service are still believed in: news is taken at once, a silent mass disappearance is not.

The registry's key of an instance that leaves in order is marked as draining first. A key that vanishes without that
is a suspicion: one of many is believed (its lease ran out), more than half at once is more likely an accident of the
store (a deleted prefix, a store restored from an old backup). Then the lost ones are kept, and Envoy's and gRPC's own
health checks tell which of them live. They are let go when they say goodbye after all, or when as many others have
come. So an empty list replaces a full one only when every instance said goodbye.
"""

from __future__ import annotations

from mesh.instance import Instance, View


class Retention:
    """What is believed of one service. `observe` takes each View in turn."""

    def __init__(self) -> None:
        self._believed: dict[str, Instance] = {}
        self._suspects: dict[str, Instance] = {}
        self._seen: View | None = None
        self._result: tuple[Instance, ...] = ()

    def __repr__(self) -> str:
        return f"Retention(believed={sorted(self._believed)}, suspects={sorted(self._suspects)})"

    @property
    def suspects(self) -> tuple[Instance, ...]:
        """The instances that are kept though the store knows them no more."""
        return tuple(self._suspects.values())

    def observe(self, view: View) -> tuple[Instance, ...]:
        """Return the instances that calls may go to, sorted by id; the same tuple while nothing changed."""
        if not view.known or view is self._seen:
            return self._result
        ready = {i.id: i for i in view.ready}
        suspects: dict[str, Instance] = {}
        if self._suspects or not self._believed.keys() <= ready.keys():
            suspects = self._doubted(view, ready)
        self._seen, self._believed, self._suspects = view, ready, suspects
        both = ready | suspects
        result = tuple(both[key] for key in sorted(both)) if suspects else tuple(ready.values())
        # Who had said goodbye before goes: that is a change of the view and none of this.
        self._result = self._result if result == self._result else result
        return self._result

    def _doubted(self, view: View, ready: dict[str, Instance]) -> dict[str, Instance]:
        """Return who is kept although the view has them no more."""
        present = {i.id for i in view.instances}
        lost = {key: i for key, i in self._believed.items() if key not in present}
        suspects = {key: i for key, i in self._suspects.items() if key not in present}
        if 2 * len(lost) > len(self._believed) or not ready:
            suspects |= lost
        # An address has one owner: who has it now has it.
        addresses = {i.endpoint for i in view.instances} if suspects else set()
        suspects = {key: i for key, i in suspects.items() if i.endpoint not in addresses}
        return {} if len(ready) >= len(suspects) else suspects
