"""Faults under a steady 200 calls a second on each of the two roads at the same time: not one call may fail."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.etcd import EtcdStore
from mesh.registry.record import service_prefix
from mesh.settings import Settings
from support.entrances import SERVICE
from support.etcd import Etcd
from support.load import Load
from support.stack import Stack

pytestmark = [pytest.mark.stack, pytest.mark.drill, pytest.mark.alone, pytest.mark.xdist_group("stack")]

SETTLED = 2.0  # seconds of load before a fault and after its end


@pytest.fixture
def load(stack: Stack, tmp_path: Path) -> Load:
    """The load on both roads, not yet begun."""
    return Load(tmp_path, stack.environment, stack.edge)


def steady(seconds: float = SETTLED) -> None:
    """Let the load go on."""
    time.sleep(seconds)


def wait_until(condition: Callable[[], bool], within: float) -> float:
    """Wait for a condition and return the seconds that took; fail after `within`."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within, f"not so after {within} s"
        time.sleep(0.02)
    return time.monotonic() - begin


def test_no_call_fails_when_an_instance_is_killed(stack: Stack, load: Load) -> None:
    with load:
        steady()
        os.kill(stack.instances[0].pid, signal.SIGKILL)
        steady()
        stack.wait_whole()
        steady()
    load.check()


def test_no_call_fails_when_every_instance_is_restarted_in_turn(stack: Stack, load: Load) -> None:
    with load:
        steady()
        for name in [instance.name for instance in stack.instances]:
            os.kill(stack.process(name).pid, signal.SIGTERM)
            stack.wait_other(name, stack.process(name).pid)
            stack.wait_whole()
        steady()
    load.check()


def test_no_call_fails_while_the_control_plane_is_away_and_when_it_returns(stack: Stack, load: Load) -> None:
    with load:
        steady()
        with stack.held("control-plane"):
            os.kill(stack.process("control-plane").pid, signal.SIGKILL)
            steady(10.0)
        stack.wait_whole()
        steady(5.0)
    load.check()


@pytest.mark.timeout(200)
def test_no_call_fails_while_etcd_is_away_for_a_minute_and_all_are_registered_2_s_after(
    stack: Stack, load: Load, own_etcd: Etcd
) -> None:
    with load:
        steady()
        own_etcd.kill()
        steady(60.0)
        own_etcd.start()
        taken = wait_until(lambda: len(asyncio.run(fresh(stack))) == 3, within=2.0)
        print(f"all registered {taken:.2f} s after etcd was ready")
        # A lease that nobody keeps would end within the time to live.
        steady(12.0)
        assert len(asyncio.run(fresh(stack))) == 3
    load.check()


def test_no_call_fails_when_etcd_returns_empty_and_all_are_registered_2_s_after(
    stack: Stack, load: Load, own_etcd: Etcd
) -> None:
    with load:
        steady()
        own_etcd.kill()
        own_etcd.wipe()
        steady(5.0)
        own_etcd.start()
        taken = wait_until(lambda: len(asyncio.run(fresh(stack))) == 3, within=2.0)
        print(f"all registered {taken:.2f} s after an empty etcd was ready")
        steady(12.0)
        assert len(asyncio.run(fresh(stack))) == 3
    load.check()


async def fresh(stack: Stack) -> set[str]:
    """The keys of the instances that etcd has now."""
    settings = Settings.from_env(stack.environment)
    async with EtcdStore.from_settings(settings) as store:
        return set((await store.list(service_prefix(settings.prefix, SERVICE))).entries)
