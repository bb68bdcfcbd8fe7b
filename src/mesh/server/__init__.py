"""Servers on the mesh: `mesh.serve` for a whole process, `mesh.Server` inside of one.

Read `server` for coming and leaving, `handlers` and `call` for what happens to one call, `limits` for what callers may.
"""

from mesh.server.errors import refusal_of
from mesh.server.serve import serve
from mesh.server.server import Server

__all__ = ["Server", "refusal_of", "serve"]
