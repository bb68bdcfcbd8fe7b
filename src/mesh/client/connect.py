"""The door: `mesh.connect`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mesh.client.channel import Channel
from mesh.client.policies import ServicePolicies
from mesh.client.pool import Pool
from mesh.client.source import FixedSource, RegistrySource, ResolverSource, Source
from mesh.clock import Clock, Dice
from mesh.instance import Endpoint, check_service_name
from mesh.policy import Balancer, BalancerPolicy, MethodPolicy
from mesh.settings import Settings
from mesh.telemetry import tracing
from mesh.wallclock import CLOCK, DICE

if TYPE_CHECKING:
    from mesh.registry.resolver import Resolver
    from mesh.store import Store


def connect(
    service: str,
    *,
    endpoints: Iterable[str | Endpoint] | None = None,
    settings: Settings | None = None,
    store: Store | None = None,
    resolver: Resolver | None = None,
    policies: Mapping[str, MethodPolicy] | None = None,
    balancer: Balancer | BalancerPolicy | None = None,
    clock: Clock = CLOCK,
    dice: Dice = DICE,
) -> Channel:
    """Return a channel to all instances of a service, for its generated stubs:

        async with mesh.connect("users.v1.UserService") as channel:
            user = await UserServiceStub(channel).GetUser(GetUserRequest(id="7"))

    endpoints: call exactly these, "host:port" each, and ask no registry.
    settings: where the registry is and who we are; by default as the MESH_* variables say.
    store, resolver: use these instead of the etcd of the settings. Whoever made them closes them.
    policies: by path ("/users.v1.UserService/GetUser"), over those of the contract.
    balancer: how instances are chosen, over what the contract says; see docs/balancing.md.

    Nothing is sent before the first call, or `async with`, in a running event loop; the channel belongs to that loop.
    A call waits for an instance until its deadline (by default that of the method's policy); with
    wait_for_ready=False it fails at once where none is registered or reachable.

    Raises InvalidName for a service or endpoint that is none, SettingsError for settings that cannot be used.
    """
    check_service_name(service)
    settings = settings if settings is not None else Settings.from_env()
    source: Source
    if endpoints is not None:
        source = FixedSource(service, endpoints)
    elif resolver is not None:
        source = ResolverSource(service, resolver)
    else:
        source = RegistrySource(service, settings, store, clock, dice)
    tracing.adopt()
    rules = ServicePolicies(service, policies, BalancerPolicy(balancer) if isinstance(balancer, Balancer) else balancer)
    pool = Pool(
        service,
        source,
        policies=rules,
        tls=settings.tls,
        drain=settings.drain,
        zone=settings.zone,
        client=settings.instance_id or f"{dice.randrange(2**62):x}",
        clock=clock,
        dice=dice,
    )
    return Channel(pool, rules)
