"""Lets a test marked `alone` have the machine to itself while pytest runs several workers: it measures time or rates.

Two locks between processes, a room and the door to it: every test enters through the door, an `alone` one holds the
door until it has left the room, so it cannot be starved. The waiting is outside of the test's own timeout.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PLACE = "MESH_TESTS_ROOM"


@contextmanager
def _locked(file: Path, how: int) -> Iterator[int]:
    fd = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _in_room(place: Path, *, alone: bool) -> Iterator[None]:
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    place.mkdir(mode=0o700, exist_ok=True)  # /tmp may be swept while the tests run
    with _locked(place / "door", fcntl.LOCK_EX) as door, _locked(place / "room", how):
        if not alone:
            fcntl.flock(door, fcntl.LOCK_UN)
        yield


def pytest_configure(config: pytest.Config) -> None:
    """Make the place for the locks; the workers inherit its name."""
    if not hasattr(config, "workerinput"):
        os.environ[_PLACE] = tempfile.mkdtemp(prefix="pytest-room-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ[_PLACE], ignore_errors=True))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run the test among others, or alone."""
    with _in_room(Path(os.environ[_PLACE]), alone=item.get_closest_marker("alone") is not None):
        return (yield)
