"""Descriptor sets: complete, the same every time, and honest about what they are not."""

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from mesh.contract import descriptors
from mesh.errors import ContractError
from users.v1 import users_pb2_grpc  # noqa: F401  links the contract

USERS = "users.v1.UserService"


def test_a_set_holds_the_service_and_all_it_imports_with_imports_first():
    files = descriptors.read(descriptors.descriptor_set([USERS])).file
    seen: set[str] = set()
    for file in files:
        assert set(file.dependency) <= seen
        seen.add(file.name)
    assert files[-1].name == "users/v1/users.proto"


def test_the_same_contract_gives_the_same_digest_whatever_the_order_and_company():
    alone = descriptors.descriptor_set([USERS])
    beside = descriptors.descriptor_set(["grpc.health.v1.Health", USERS, USERS])
    assert descriptors.digest(alone) == descriptors.digest(beside)


def test_a_service_without_linked_stubs_brings_no_contract():
    assert descriptors.descriptor_set(["nobody.v1.Unknown"]) == b""
    assert descriptors.methods("nobody.v1.Unknown") == ()


def test_options_of_extensions_survive_the_trip():
    service = descriptors.pool_of(descriptors.descriptor_set([USERS])).FindServiceByName(USERS)
    options = descriptor_pb2.MethodOptions.FromString(
        service.methods_by_name["GetUser"].GetOptions().SerializeToString()
    )
    assert options.Extensions[annotations_pb2.http].get == "/v1/users/{id}"


def test_streams_are_told_from_unary_methods():
    shapes = {m.name: m for m in descriptors.methods(USERS)}
    assert shapes["WatchUsers"].server_streaming and not shapes["WatchUsers"].client_streaming
    assert not shapes["GetUser"].server_streaming
    assert shapes["GetUser"].path == "/users.v1.UserService/GetUser"


@pytest.mark.parametrize("junk", [b"\xff\xff\xff", b"not a descriptor set at all"])
def test_bytes_that_are_no_set_are_refused_in_words(junk):
    with pytest.raises(ContractError, match="no FileDescriptorSet"):
        descriptors.read(junk)


def test_a_set_with_a_missing_import_is_refused_with_the_files_name():
    broken = descriptor_pb2.FileDescriptorSet()
    broken.file.add(name="a.proto", syntax="proto3", dependency=["missing.proto"])
    with pytest.raises(ContractError, match=r"a\.proto"):
        descriptors.pool_of(broken.SerializeToString())


def test_services_are_named_without_grpcs_own():
    assert descriptors.services_of(descriptors.descriptor_set([USERS])) == (USERS,)
