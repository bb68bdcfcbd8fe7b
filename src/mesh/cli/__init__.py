"""The `mesh` command. This file only starts it: everything that needs click or rich is imported behind `main`.

Read next: `app` for the commands, `up` for the story of the local stack, `adopt` for `mesh run`.
"""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["main"]

FORKS = "GRPC_ENABLE_FORK_SUPPORT"
QUIET = {FORKS: "0", "GRPC_VERBOSITY": "NONE"}
_WANTED = {"click", "rich"}


def main() -> None:
    """Run the `mesh` command and leave the process with its exit code."""
    # gRPC reads this when it is imported. Our children are exec'ed at once, they need no fork handlers of gRPC; and a
    # refused connection is told by us, in words, not by its own log.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # What goes wrong is told by the commands; `mesh control-plane` sets up its own log.
    logging.getLogger("mesh").addHandler(logging.NullHandler())
    try:
        from mesh.cli.app import run_app
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        if missing not in _WANTED:
            raise
        sys.exit(f"mesh: the command needs {missing}: run pip install 'grpc-mesh[cli]'")
    except KeyboardInterrupt:  # while it was still importing
        sys.exit(130)
    sys.exit(run_app())
