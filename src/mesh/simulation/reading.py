"""From the data of a scenario's file to scenarios: one, or one for each of its variants. The format is told in
docs/simulation.md. YAML itself is read by whoever calls.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from mesh.policy import Balancer, BalancerPolicy, BreakerPolicy, BudgetPolicy, RetryPolicy
from mesh.resilience.limiter import LimitPolicy
from mesh.simulation.scenario import Clients, Fault, FaultKind, Scenario, Servers, ServiceTime, Spread
from mesh.simulation.section import ScenarioError, Section

__all__ = ["ScenarioError", "read_scenarios"]

# Loads are not reported and calls are about nothing: what goes by either has nothing to go by.
BALANCERS = {"round_robin": Balancer.ROUND_ROBIN, "least_loaded": Balancer.LEAST_LOADED}
CODES = (
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
# What fits into a few gigabytes and a few minutes.
_MOST_CONNECTIONS = 2_000_000
_MOST_CALLS = 20_000_000
# Of the normal distribution: p99 is so many sigmas above the median.
_P99 = 2.3263

P = TypeVar("P", RetryPolicy, BudgetPolicy, BreakerPolicy, LimitPolicy)


def read_scenarios(data: object, settings: Mapping[str, object] | None = None) -> list[Scenario]:
    """Return the scenario, or one for each variant, with `settings` ("clients.retry.budget": False) over all of it.

    Raises ScenarioError at the first mistake.
    """
    settings = settings or {}
    if isinstance(data, Mapping):
        data = _changed(data, settings)
    top = Section(data)
    variants = top.value("variants")
    if variants is None:
        return [_scenario(data, "")]
    if not isinstance(variants, Mapping) or not variants:
        raise top.error("variants", "write a mapping of names to settings")
    scenarios = []
    for name, changes in variants.items():
        changes = {} if changes is None else changes
        if not isinstance(changes, Mapping):
            raise ScenarioError(f"variants.{name} is no mapping: write settings such as clients.retry.budget: off")
        varied = _changed(data, {str(path): value for path, value in changes.items()})
        # Once more: what is asked for now is over what a variant says, except that what it has switched off stays off.
        scenarios.append(_scenario(_changed(varied, settings, revive=False), str(name)))
    return scenarios


def _changed(data: object, settings: Mapping[str, object], *, revive: bool = True) -> object:
    """Return the data with other values at some dotted paths. What is not there yet is made; what is off is not, unless
    `revive`.
    """
    changed: Any = copy.deepcopy(data)
    for path, value in settings.items():
        *parents, last = path.split(".")
        at = changed
        for key in parents:
            at = _step(at, key, path, revive=revive)
            if at is None:
                break
        if isinstance(at, list):
            at[_index(at, last, path)] = value
        elif at is not None:
            at[last] = value
    return changed


def _step(at: Any, key: str, path: str, *, revive: bool) -> Any:
    """Go one step along a path; None where it ends at something that is off."""
    if isinstance(at, list):
        item = at[_index(at, key, path)]
        if not isinstance(item, dict | list):
            raise ScenarioError(f"{path} leads nowhere: item {key} of the list is no mapping")
        return item
    if not isinstance(at.get(key), dict | list):
        if not revive and at.get(key) is False:
            return None
        at[key] = {}
    return at[key]


def _index(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ScenarioError(f"{path} leads nowhere: {key!r} is no place in a list of {len(items)}")
    return int(key)


def _scenario(data: object, name: str) -> Scenario:
    top = Section(data)
    top.value("variants")
    duration = top.duration("duration")
    servers = _servers(top.section("servers"))
    scenario = Scenario(
        duration=duration,
        servers=servers,
        clients=_clients(top.section("clients")),
        faults=tuple(_fault(section, servers) for section in top.sections("faults")),
        seed=top.whole("seed", 1, low=0, high=2**31),
        name=name,
        about=top.text("about"),
    )
    top.finish()
    _check(scenario)
    return scenario


def _check(scenario: Scenario) -> None:
    servers, clients = scenario.servers, scenario.clients
    connections = clients.count * min(clients.balancer.subset_size or servers.count, servers.count)
    if connections > _MOST_CONNECTIONS:
        raise ScenarioError(
            f"{clients.count} clients of {servers.count} servers make {connections} connections: write clients.subset"
        )
    if scenario.offered * scenario.duration > _MOST_CALLS:
        raise ScenarioError(f"that makes more than {_MOST_CALLS} calls: write a shorter duration or fewer calls")
    for number, fault in enumerate(scenario.faults):
        if fault.at < 1:
            raise ScenarioError(f"faults.{number}.at is {fault.at:g}: write 1s or later, there must be a time before")
        if fault.until > scenario.duration - 1:
            raise ScenarioError(
                f"faults.{number} is over after {fault.until:g} s and everything after {scenario.duration:g} s: "
                "write a duration that leaves a second after it"
            )


def _servers(section: Section) -> Servers:
    limit = section.optional("limit") if section.value("limit") is not None else None
    servers = Servers(
        count=section.whole("count", high=100_000),
        service_time=_service_time(section),
        concurrency=section.whole("concurrency", 10),
        queue=section.whole("queue", 100, low=0),
        serves_abandoned=section.choice("abandoned", ("dropped", "served"), "dropped") == "served",
        limit=_policy(LimitPolicy, limit) if limit is not None else None,
    )
    section.finish()
    return servers


def _service_time(servers: Section) -> ServiceTime:
    if not isinstance(servers.value("service_time"), Mapping):
        always = servers.duration("service_time")
        return ServiceTime(Spread.ALWAYS, always, mean=always)
    section = servers.section("service_time")
    if section.value("mean") is not None:
        mean = section.duration("mean")
        section.finish()
        return ServiceTime(Spread.EXPONENTIAL, mean, mean=mean)
    median, p99 = section.duration("p50"), section.duration("p99")
    section.finish()
    if p99 < median:
        raise section.error("p99", f"write p50's {median:g} s or more")
    sigma = math.log(p99 / median) / _P99
    return ServiceTime(Spread.LOGNORMAL, median, sigma, mean=median * math.exp(sigma**2 / 2))


def _clients(section: Section) -> Clients:
    deadline = section.duration("deadline", 1.0)
    retry, budget, timeout = _retry(section, deadline)
    breaker = section.optional("breaker")
    clients = Clients(
        count=section.whole("count", high=100_000),
        rate=section.number("calls_per_second", above=True, high=1e6),
        deadline=deadline,
        attempt_timeout=timeout,
        idempotent=not section.is_off("idempotent"),
        balancer=BalancerPolicy(
            BALANCERS[section.choice("balancer", BALANCERS, "round_robin")],
            slow_start=section.duration("slow_start", 0.0, above=False),
            subset_size=section.whole("subset", 0, low=0),
        ),
        retry=retry,
        budget=budget,
        breaker=_policy(BreakerPolicy, breaker) if breaker is not None else None,
    )
    section.finish()
    return clients


def _retry(clients: Section, deadline: float) -> tuple[RetryPolicy, BudgetPolicy | None, float | None]:
    section = clients.optional("retry")
    if section is None:
        return RetryPolicy(max_attempts=1), BudgetPolicy(), None
    timeout = section.duration("attempt_timeout", deadline)
    if timeout > deadline:
        raise section.error("attempt_timeout", f"write the deadline's {deadline:g} s or less")
    codes = section.value("codes")
    if codes is not None and (not isinstance(codes, list) or any(c not in CODES for c in codes)):
        raise section.error("codes", "write a list of status codes such as [UNAVAILABLE]")
    budget = section.optional("budget")
    policy = _policy(RetryPolicy, section, **({"codes": frozenset(codes)} if codes else {}))
    bounded = _policy(BudgetPolicy, budget) if budget is not None else None
    return policy, bounded, timeout if timeout < deadline else None


def _policy(kind: type[P], section: Section, **given: Any) -> P:
    """Read a policy of numbers by the names of its fields; times may be written with their unit."""
    values = dict(given)
    for name, default in kind()._asdict().items():
        if name in given or section.value(name) is None:
            continue
        if isinstance(default, bool):
            values[name] = not section.is_off(name)
        elif isinstance(default, int):
            values[name] = section.whole(name)
        elif name.endswith(("rate", "share", "multiplier", "per_second", "factor")):
            values[name] = section.number(name)
        elif isinstance(default, float):
            values[name] = section.duration(name, above=False)
    section.finish()
    return kind(**values)


def _fault(section: Section, servers: Servers) -> Fault:
    kind = FaultKind(section.choice("kind", [str(k) for k in FaultKind]))
    at = section.duration("at")
    if kind is FaultKind.BURST:
        fault = Fault(kind, at, section.duration("for"), factor=section.number("factor", above=True))
    elif kind is FaultKind.ROLLING_RESTART:
        count = _how_many(section, servers, servers.count)
        drain, down = section.duration("drain", 1.0, above=False), section.duration("down", 1.0)
        fault = Fault(kind, at, count * (drain + down), count, drain=drain, down=down)
    else:
        fault = Fault(
            kind,
            at,
            section.duration("for"),
            _how_many(section, servers, 1),
            factor=section.number("factor", above=True) if kind is FaultKind.SLOW else 1.0,
            rate=section.number("rate", 1.0, high=1.0, above=True) if kind is FaultKind.ERRORS else 1.0,
            code=section.choice("code", CODES, "UNAVAILABLE") if kind is FaultKind.ERRORS else "UNAVAILABLE",
        )
    section.finish()
    return fault


def _how_many(section: Section, servers: Servers, default: int) -> int:
    value = section.value("servers")
    if value == "all":
        return servers.count
    if isinstance(value, str) and value.removesuffix("%").isdigit():
        return max(1, min(servers.count, round(servers.count * int(value.removesuffix("%")) / 100)))
    return section.whole("servers", default, high=servers.count)
