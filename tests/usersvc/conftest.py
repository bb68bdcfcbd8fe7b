"""Fixtures for the tests of the reference service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.postgres import Postgres


@pytest.fixture(scope="session")
def _session_postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(_session_postgres: Postgres) -> Postgres:
    """A running PostgreSQL, one per pytest worker. A test that stops it may leave it so."""
    if not _session_postgres.running:
        _session_postgres.start()
    return _session_postgres
