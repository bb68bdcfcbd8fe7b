"""What is known, and what of a snapshot is made again when something changes."""

from __future__ import annotations

import logging

import pytest

from mesh.contract import descriptors
from mesh.controlplane.catalog import Catalog
from mesh.instance import Endpoint, Instance, View
from mesh.xds.resources import CLUSTER, ENDPOINTS, EXTENSION, ROUTES
from mesh.xds.snapshot import Audience
from users.v1 import users_pb2_grpc as _linked  # noqa: F401  its descriptors are a contract

S, OTHER = "users.v1.UserService", "a.Other"
CONTRACT = descriptors.descriptor_set([S])
DIGEST = descriptors.digest(CONTRACT)


def at(number: int, service: str = S, host: str = "10.0.0.1", contract: str = DIGEST) -> Instance:
    return Instance(service, f"i{number}", Endpoint(host, 1000 + number), contract=contract, started=float(number))


def known(*instances: Instance) -> Catalog:
    catalog = Catalog()
    observe(catalog, *instances)
    catalog.observe_contract(DIGEST, CONTRACT)
    return catalog


def observe(catalog: Catalog, *instances: Instance) -> None:
    by_service: dict[str, list[Instance]] = {}
    for one in instances:
        by_service.setdefault(one.service, []).append(one)
    catalog.observe_views({name: View.of(name, several) for name, several in by_service.items()})


def test_an_instance_that_comes_makes_only_its_services_endpoints_new() -> None:
    catalog = known(at(1), at(1, OTHER, contract=""))
    for audience in Audience:
        before = catalog.snapshot(audience)
        observe(catalog, at(1), at(2), at(1, OTHER, contract=""))
        after = catalog.snapshot(audience)
        for kind in (CLUSTER, ROUTES, EXTENSION):
            assert all(after.all(kind)[name] is resource for name, resource in before.all(kind).items())
        assert after.all(ENDPOINTS)[S] != before.all(ENDPOINTS)[S]
        assert after.all(ENDPOINTS)[OTHER] == before.all(ENDPOINTS)[OTHER]
        observe(catalog, at(1), at(1, OTHER, contract=""))


def test_a_policy_makes_the_routes_new() -> None:
    catalog = known(at(1))
    before = catalog.snapshot(Audience.ENVOY)
    catalog.observe_policies({S: b'{"timeout": "9s"}'})
    assert catalog.snapshot(Audience.ENVOY).all(ROUTES) != before.all(ROUTES)


def test_each_kind_of_client_has_its_own() -> None:
    catalog = known(at(1))
    plain, secret = catalog.snapshot(Audience.ENVOY), catalog.snapshot(Audience.ENVOY, "/secrets")
    assert plain.all(CLUSTER) != secret.all(CLUSTER)
    assert catalog.snapshot(Audience.GRPC).all(ROUTES) != plain.all(ROUTES)
    assert catalog.snapshot(Audience.ENVOY) == plain


def test_a_contract_is_wanted_until_it_is_there() -> None:
    catalog = Catalog()
    observe(catalog, at(1), at(2, contract=""))
    assert catalog.wanted == {DIGEST}
    catalog.observe_contract(DIGEST, CONTRACT)
    assert catalog.wanted == frozenset()


def test_a_name_instead_of_an_address_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    catalog = Catalog()
    with caplog.at_level(logging.WARNING, "mesh.controlplane"):
        for instances in (
            (at(1, host="db.example"),),
            (at(1, host="db.example"), at(2)),
            (at(1, host="db.example"), at(2), at(3, host="other.example")),
        ):
            observe(catalog, *instances)
            catalog.snapshot(Audience.ENVOY)
    assert [record.args[0] for record in caplog.records if record.args] == ["db.example:1001", "other.example:1003"]  # type: ignore[index]  # a tuple, as we log it
