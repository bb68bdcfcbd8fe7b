"""`python -m mesh` is the `mesh` command."""

from __future__ import annotations

from mesh.cli import main

main()
