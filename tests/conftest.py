"""Fixtures of the whole suite."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import hypothesis
import pytest

from support.alone import pytest_configure, pytest_runtest_protocol
from support.etcd import Etcd

__all__ = ["etcd", "pytest_configure", "pytest_runtest_protocol"]  # hooks are found by their names

# Started in the background of a script, we ignore SIGINT, and so would every program that a test presses Ctrl-C in.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are timed by the wall clock, which says nothing on a machine that runs other tests as well.
hypothesis.settings.register_profile("mesh", deadline=None)
hypothesis.settings.load_profile("mesh")


@pytest.fixture(scope="session")
def _session_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as member:
        yield member


@pytest.fixture
def etcd(_session_etcd: Etcd) -> Etcd:
    """A running etcd, one per pytest worker. Use a key prefix of your own; a test that breaks etcd starts its own."""
    if not _session_etcd.running:
        _session_etcd.start()
    return _session_etcd
