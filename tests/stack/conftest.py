"""The stacks that the tests of this folder share, one of each kind in a session: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.collector import Collector
from support.etcd import Etcd
from support.postgres import Postgres
from support.stack import NETWORKS, Stack


@pytest.fixture(scope="session")
def own_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """The etcd of `stack`, to be killed and started again."""
    with Etcd(tmp_path_factory.mktemp("stack-etcd")) as member:
        yield member


@pytest.fixture(scope="session")
def _stack(own_etcd: Etcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with Stack(folder / "mesh", "--etcd", own_etcd.endpoint, env={"MESH_NETWORKS": NETWORKS}) as running:
        yield running


@pytest.fixture
def stack(_stack: Stack) -> Stack:
    """Three instances on SQLite, with an etcd of its own; whole again when a test begins."""
    _stack.wait_whole()
    return _stack


@pytest.fixture(scope="session")
def _tls_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("tls") / "mesh", "--tls", "--instances", "2") as running:
        yield running


@pytest.fixture
def tls_stack(_tls_stack: Stack) -> Stack:
    """Two instances, mutual TLS on every hop, and `mesh up`'s own etcd."""
    _tls_stack.wait_whole()
    return _tls_stack


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the spans of `postgres_stack` go."""
    with Collector() as running:
        yield running


@pytest.fixture(scope="session")
def _postgres_stack(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    traced = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with Postgres() as server:
        folder = tmp_path_factory.mktemp("postgres")
        with Stack(folder / "mesh", "--database", server.make(), env=traced) as running:
            yield running


@pytest.fixture
def postgres_stack(_postgres_stack: Stack) -> Stack:
    """Three instances on PostgreSQL, traced to `collector`, and `mesh up`'s own etcd."""
    _postgres_stack.wait_whole()
    return _postgres_stack
