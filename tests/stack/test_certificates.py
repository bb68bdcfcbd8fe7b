"""`mesh up --tls`: who shows no certificate, or one of another authority, or speaks plain text, gets nowhere."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import grpc
import pytest

from mesh.cli import authority
from mesh.wallclock import CLOCK
from support.entrances import ask, channel
from support.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.xdist_group("stack")]

Refused = grpc.RpcError
HOPS = ("etcd", "instance", "control plane", "edge")
CALLERS = ("no certificate", "another authority's certificate", "plain text")


def address(stack: Stack, hop: str) -> str:
    """Where a hop is entered."""
    known = {"etcd": stack.etcd, "control plane": stack.control_plane, "edge": stack.edge}
    return known.get(hop) or stack.instances[0].address


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A client's certificate and key by an authority of its own."""
    client = authority.ensure(tmp_path_factory.mktemp("strangers"), CLOCK.time())["client"]
    return {"cert": str(client.cert), "key": str(client.key)}


def shown(caller: str, stack: Stack, strangers: Mapping[str, str]) -> Mapping[str, str] | None:
    """The TLS files of a caller."""
    assert stack.tls is not None
    trusted = {"ca": stack.tls["ca"]}
    return {"no certificate": trusted, "another authority's certificate": {**trusted, **strangers}}.get(caller)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("hop", HOPS)
def test_grpc_caller_without_our_certificate_is_refused(
    hop: str, caller: str, tls_stack: Stack, strangers: Mapping[str, str]
) -> None:
    with channel(address(tls_stack, hop), shown(caller, tls_stack, strangers)) as to, pytest.raises(Refused) as refused:
        to.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)

    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("hop", HOPS)
def test_caller_with_our_certificate_reaches_every_hop(hop: str, tls_stack: Stack) -> None:
    with channel(address(tls_stack, hop), tls_stack.tls) as to:
        grpc.channel_ready_future(to).result(timeout=10)


@pytest.mark.parametrize("caller", CALLERS)
def test_http_caller_without_our_certificate_is_refused_at_the_edge(
    caller: str, tls_stack: Stack, strangers: Mapping[str, str]
) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(tls_stack.edge, "GET", "/v1/users", tls=shown(caller, tls_stack, strangers))
