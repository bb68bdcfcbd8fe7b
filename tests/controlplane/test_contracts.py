"""Contracts at the control plane: which one counts, how all become one, what is left out rather than spoil the rest."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from mesh.contract import descriptors
from mesh.controlplane import contracts
from mesh.controlplane.annotations import Binding
from mesh.instance import Endpoint, Instance
from users.v1 import users_pb2_grpc  # noqa: F401  its descriptors are a contract

USERS = "users.v1.UserService"


def contract(service: str, file: str = "", rules: Mapping[str, dict[str, str]] | None = None) -> bytes:
    """A contract with one service; its methods take a message with a field "id"."""
    package, _, name = service.rpartition(".")
    proto = descriptor_pb2.FileDescriptorProto(name=file or f"{service}.proto", package=package, syntax="proto3")
    message = proto.message_type.add(name="M")
    message.field.add(name="id", number=1, type=9, label=1)
    kept = proto.service.add(name=name)
    for method, rule in (rules or {"Get": {}}).items():
        added = kept.method.add(name=method, input_type=f".{package}.M", output_type=f".{package}.M")
        if rule:
            for field, value in rule.items():
                setattr(added.options.Extensions[annotations_pb2.http], field, value)
    return descriptor_pb2.FileDescriptorSet(file=[proto]).SerializeToString()


def instance(number: int, digest: str, started: float = 0.0) -> Instance:
    return Instance(USERS, f"i{number}", Endpoint("10.0.0.1", 1000 + number), contract=digest, started=started)


def test_contract_of_most_instances_counts() -> None:
    known = {"a": b"", "b": b""}

    assert contracts.pick([instance(1, "a"), instance(2, "b"), instance(3, "b")], known) == "b"


def test_of_two_equally_many_the_newer_counts() -> None:
    known = {"a": b"", "b": b""}

    assert contracts.pick([instance(1, "a", 2.0), instance(2, "b", 1.0)], known) == "a"


def test_contract_that_was_not_fetched_does_not_count() -> None:
    assert contracts.pick([instance(1, "a"), instance(2, "b"), instance(3, "b")], {"a": b""}) == "a"
    assert contracts.pick([instance(1, "a")], {}) == ""


def test_methods_carry_policy_and_the_number_of_the_request_id() -> None:
    found = {m.path: m for m in contracts.methods(USERS, descriptors.descriptor_set([USERS]), None)}

    assert found[f"/{USERS}/CreateUser"].request_id == 2
    assert found[f"/{USERS}/GetUser"].request_id == 0
    assert found[f"/{USERS}/GetUser"].policy.idempotent
    assert found[f"/{USERS}/WatchUsers"].streaming
    assert found[f"/{USERS}/GetUser"].policy.timeout == 5.0


def test_empty_mesh_has_a_placeholder_because_envoy_wants_a_service() -> None:
    merged = contracts.merge([])

    assert merged.services == (contracts.PLACEHOLDER,)
    contracts.pool_of(merged).FindServiceByName(contracts.PLACEHOLDER)


def test_all_services_are_merged_with_the_shapes_of_errors() -> None:
    merged = contracts.merge([(USERS, descriptors.descriptor_set([USERS])), ("a.v1.B", contract("a.v1.B"))])

    assert merged.services == (USERS, "a.v1.B")
    contracts.pool_of(merged).FindMessageTypeByName("google.rpc.ErrorInfo")


def test_same_contracts_give_the_same_bytes() -> None:
    both = [(USERS, descriptors.descriptor_set([USERS])), ("a.v1.B", contract("a.v1.B"))]

    assert contracts.merge(both) == contracts.merge(both)


def test_of_two_files_of_one_name_the_first_counts_and_the_other_service_is_left_out() -> None:
    merged = contracts.merge([("a.v1.A", contract("a.v1.A", "x.proto")), ("b.v1.B", contract("b.v1.B", "x.proto"))])

    assert merged.services == ("a.v1.A",)
    assert merged.left_out == ("b.v1.B",)


@pytest.mark.parametrize(
    "rule",
    [
        {"get": "no-slash"},
        {"get": "/a/{"},
        {"get": "/a/{id}}"},
        {"get": "/a b"},
        {"get": "/**/a"},
        {"get": "/a/{missing}"},
        {"post": "/a", "body": "missing"},
        {"get": "/a/{id.deeper}"},
    ],
    ids=str,
)
def test_service_whose_annotations_envoy_would_refuse_is_left_out(rule: dict[str, str]) -> None:
    merged = contracts.merge([("a.v1.A", contract("a.v1.A", rules={"Get": rule})), ("b.v1.B", contract("b.v1.B"))])

    assert merged.services == ("b.v1.B",)
    assert merged.left_out == ("a.v1.A",)


def test_two_methods_at_one_path_are_told_apart_by_who_was_first() -> None:
    one = contract("a.v1.A", rules={"Get": {"get": "/a/{id}"}})
    other = contract("b.v1.B", rules={"Get": {"get": "/a/{id=*}"}, "Put": {"put": "/a/{id}"}})

    assert contracts.merge([("a.v1.A", one), ("b.v1.B", other)]).services == ("a.v1.A",)


def test_shape_of_a_template_has_its_variables_as_patterns() -> None:
    assert Binding("GET", "/v1/{name=shelves/*/books/*}:read").shape == "/v1/shelves/*/books/*:read"
    assert Binding("GET", "/v1/{user.id}").variables == ("user.id",)
