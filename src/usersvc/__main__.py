"""`python -m usersvc`: serves users on a mesh until SIGTERM. All settings come from the environment."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence

from mesh.clock import Clock
from mesh.errors import MeshError, SettingsError
from mesh.settings import Settings
from mesh.wallclock import CLOCK
from usersvc.database import DEFAULT, open_store
from usersvc.servicer import UserService
from usersvc.store import StoreFailed, UserStore

_log = logging.getLogger("usersvc")

PRUNE_EVERY = 60.0  # seconds

_EPILOG = """\
environment:
  USERS_DATABASE   where users are kept (default sqlite:///users.db)
  MESH_ETCD, MESH_LISTEN, MESH_TLS_CA and others: see docs/settings.md

examples:
  python -m usersvc
  USERS_DATABASE=sqlite:////var/lib/users/users.db MESH_LISTEN=0.0.0.0:50051 python -m usersvc
  USERS_DATABASE=postgresql://users@db.example/users MESH_ETCD=10.0.0.5:2379 python -m usersvc
"""


def main(argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> int:
    """Serve until told to stop. Returns 0, 1 if it could not be done, 2 if it was asked for wrongly."""
    parser = argparse.ArgumentParser(
        prog="usersvc",
        description="Serves users.v1.UserService on a mesh.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    env = os.environ if env is None else env
    try:
        asyncio.run(_serve(Settings.from_env(env), env.get("USERS_DATABASE", "").strip() or DEFAULT))
    except SettingsError as e:
        return _fail(e, 2)
    except MeshError as e:
        return _fail(e, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: MeshError, code: int) -> int:
    print(f"usersvc: {error}", file=sys.stderr)
    return code


async def _serve(settings: Settings, url: str) -> None:
    from mesh.server import serve

    store = await open_store(url)
    pruning = asyncio.create_task(_prune_for_ever(store, CLOCK), name="usersvc-prune")
    try:
        await serve(UserService(store), settings=settings)
    finally:
        pruning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pruning
        await store.close()


async def _prune_for_ever(store: UserStore, clock: Clock) -> None:
    while True:
        try:
            await store.prune()
        except StoreFailed as e:
            _log.warning("old requests and changes could not be pruned: %s", e)
        await clock.sleep(PRUNE_EVERY)


if __name__ == "__main__":
    sys.exit(main())
