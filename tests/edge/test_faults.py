"""Faults behind Envoy while callers call, reads and writes that carry a request_id: none of them notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.edge import Edge, wait_until
from support.entrances import SERVICE, ask
from support.envoy import Envoy
from support.etcd import Etcd
from support.load import Load

pytestmark = pytest.mark.alone

# All that came from the control plane.
CALLS = f"^cluster.{SERVICE}.upstream_rq_total$"
UPDATES = (
    "(http|extension|cluster_manager.cds).*update_(success|rejected)$"
    "|cluster.users.*(update_rejected|membership_change)$"
)


@pytest.fixture
def edge(tmp_path: Path, etcd: Etcd) -> Iterator[Edge]:
    with Edge(tmp_path, etcd) as running:
        yield running


def load(edge: Edge, folder: Path) -> Load:
    return Load(folder, edge.environment, edge.address, roads=("edge",))


def test_killed_instance_fails_no_call(edge: Edge, tmp_path: Path) -> None:
    with load(edge, tmp_path) as running:
        for _ in range(3):
            time.sleep(0.5)
            edge.instances[0].end(signal.SIGKILL)
            wait_until(lambda: edge.healthy() == 2, "Envoy has noticed")
            edge.instances[0].start()
            wait_until(lambda: edge.healthy() == 3, "Envoy has it back")

    running.check()


def test_rolling_restart_fails_no_call(edge: Edge, tmp_path: Path) -> None:
    with load(edge, tmp_path) as running:
        for instance in edge.instances:
            instance.end()
            instance.start()
            wait_until(lambda: edge.healthy() == 3, "Envoy has it back")

    running.check()


def test_hung_instance_fails_few_calls_and_comes_back(edge: Edge, tmp_path: Path) -> None:
    with load(edge, tmp_path) as running:
        # Calls that hang are repeated from what others have saved. In its first second an Envoy has saved little, and
        # each of its workers half of that: in one run of nine a call waited to the end of the fault.
        wait_until(lambda: sum(edge.envoy.stats(CALLS).values()) >= 600, "Calls have saved something")
        os.kill(edge.instances[0].pid, signal.SIGSTOP)
        wait_until(lambda: edge.healthy() == 2, "Envoy has noticed")
        time.sleep(3.0)
        os.kill(edge.instances[0].pid, signal.SIGCONT)
        wait_until(lambda: edge.healthy() == 3, "Envoy has it back")

    running.check()
    assert running.reports["edge"].percentile(1.0) < 2.5


def test_control_plane_serves_what_it_knows_while_etcd_is_away(tmp_path: Path) -> None:
    with Etcd(tmp_path / "etcd") as own, Edge(tmp_path, own) as edge:
        own.stop()
        other = Envoy(tmp_path, edge.control_plane, name="other")
        with load(edge, tmp_path) as running, other:
            other.wait_ready()
            wait_until(lambda: ask(str(other.edge), "GET", "/v1/users").status == 200, "a new Envoy serves")
            time.sleep(1.0)
            assert edge.healthy() == 3

    running.check()


def test_killed_control_plane_fails_no_call_and_changes_nothing_on_its_return(edge: Edge, tmp_path: Path) -> None:
    before = edge.envoy.stats(UPDATES)
    with load(edge, tmp_path) as running:
        edge.plane.end(signal.SIGKILL)
        time.sleep(1.0)
        edge.plane.start()
        wait_until(
            lambda: edge.envoy.stats("control_plane.connected_state") == {"control_plane.connected_state": 1},
            "it is back",
        )
        wait_until(lambda: edge.metric("mesh_xds_streams") == 1, "Envoy has asked")
        time.sleep(0.5)

    running.check()
    # Endpoints are sent once on each stream, the same as before; nothing else is sent at all.
    assert edge.metric("mesh_xds_pushes_total") == edge.metric('mesh_xds_pushes_total{type="EDS"}') == 1
    assert edge.envoy.stats(UPDATES) == before
