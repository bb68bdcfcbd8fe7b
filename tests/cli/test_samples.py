"""What `mesh up` offers to try: true for the service at hand, and short enough for a terminal."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

from google.protobuf import descriptor_pb2

from mesh.cli.samples import Sample, samples
from mesh.settings import TLSFiles

CONTRACT = (Path(__file__).parents[2] / "generated" / "descriptors.binpb").read_bytes()
SERVICE = "users.v1.UserService"
EDGE = "127.0.0.1:8080"
FILES = TLSFiles(Path(".mesh/tls/ca.pem"), Path(".mesh/tls/client.pem"), Path(".mesh/tls/client.key"))


def by_title(*told: Sample) -> dict[str, str]:
    return {sample.title: sample.text for sample in told}


def test_the_user_service_is_tried_by_creating_and_listing() -> None:
    told = by_title(*samples(SERVICE, CONTRACT, EDGE, None, ".mesh/env"))
    assert list(told) == ["curl", "grpcurl", "Python"]
    words = shlex.split(told["curl"])
    assert words[:2] == ["curl", "-s"]
    assert "\n" not in told["curl"]
    assert words[2] == f"{EDGE}/v1/users"
    assert words[-2:] == ["-d", '{"name":"Ada","email":"ada@example.com"}']
    assert told["grpcurl"] == f"grpcurl -plaintext {EDGE} {SERVICE}/ListUsers"


def test_the_python_client_has_five_lines_and_parses() -> None:
    text = by_title(*samples(SERVICE, CONTRACT, EDGE, None, ".mesh/env"))["Python"]
    shell, *code, end = text.splitlines()
    assert shell.startswith(". .mesh/env && ")
    assert end == "END"
    assert len(code) == 5
    ast.parse("\n".join(code))


def test_lines_fit_a_terminal_of_80_columns() -> None:
    for sample in samples(SERVICE, CONTRACT, EDGE, None, ".mesh/env"):
        assert all(len(line) < 80 for line in sample.text.splitlines()), sample.text


def test_with_tls_every_command_shows_the_clients_certificate() -> None:
    told = by_title(*samples(SERVICE, CONTRACT, EDGE, FILES, ".mesh/env"))
    curl, grpcurl = shlex.split(told["curl"]), shlex.split(told["grpcurl"])
    assert f"https://{EDGE}/v1/users" in curl
    for words, dash in ((curl, "--"), (grpcurl, "-")):
        assert words[words.index(f"{dash}cacert") + 1] == ".mesh/tls/ca.pem"
        assert words[words.index(f"{dash}cert") + 1] == ".mesh/tls/client.pem"
        assert words[words.index(f"{dash}key") + 1] == ".mesh/tls/client.key"
    assert "-plaintext" not in grpcurl


def test_a_service_without_urls_has_no_curl() -> None:
    contract = descriptor_pb2.FileDescriptorSet()
    file = contract.file.add(name="a-b.proto", package="a", syntax="proto3")
    file.message_type.add(name="M")
    file.service.add(name="S").method.add(name="Do", input_type=".a.M", output_type=".a.M")
    told = by_title(*samples("a.S", contract.SerializeToString(), EDGE, None, ".mesh/env"))
    assert list(told) == ["grpcurl", "Python"]
    assert "import a_b_pb2, a_b_pb2_grpc" in told["Python"]
    assert "stub.Do(a_b_pb2.M())" in told["Python"]


def test_without_a_contract_there_is_still_something_to_try() -> None:
    for contract in (None, b"\xff\xff", CONTRACT):
        told = by_title(*samples("nobody.v1.Knows", contract, EDGE, None, ".mesh/env"))
        assert told == {"grpcurl": f"grpcurl -plaintext {EDGE} list"}
