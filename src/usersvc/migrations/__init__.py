"""The schema's versions: numbered SQL files, one folder per kind of database, each applied once and in order.

A file that was released is never changed; a new version is a new file. How they are applied is told where a connection
is: `usersvc.sqlite_schema` and `usersvc.postgres_schema`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from usersvc.store import OpenFailed

CREATE = "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY)"
READ = "SELECT coalesce(max(version), 0) FROM schema_version"
WRITE = "INSERT INTO schema_version VALUES (?1)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: from the version before to this one."""

    version: int
    sql: str


def migrations(kind: str) -> Sequence[Migration]:
    """Return every migration of "sqlite" or "postgres", in order."""
    files = (file for file in resources.files(__name__).joinpath(kind).iterdir() if file.name.endswith(".sql"))
    found = [Migration(int(file.name.split("_")[0]), file.read_text()) for file in files]
    return sorted(found, key=lambda migration: migration.version)


def pending(kind: str, present: int) -> Sequence[Migration]:
    """Return what is to be applied to a schema of this version; raise OpenFailed if it is newer than this program."""
    known = migrations(kind)
    if present > known[-1].version:
        raise OpenFailed(
            f"the database has schema version {present}, this program knows up to {known[-1].version}: "
            "run the newer program that made it"
        )
    return [migration for migration in known if migration.version > present]
