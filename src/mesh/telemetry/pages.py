"""The page that Prometheus reads. On loopback unless told otherwise: it has no authentication."""

from __future__ import annotations

import threading
from typing import Any

from mesh.errors import SettingsError


class Page:
    """A page that is being served. `address` is "host:port", with the port that was bound."""

    def __init__(self, host: str, server: Any, thread: threading.Thread) -> None:
        self._server, self._thread = server, thread
        self.address = f"[{host}]:{server.server_port}" if ":" in host else f"{host}:{server.server_port}"

    def close(self) -> None:
        """Stop serving and let the port go. Harmless when repeated."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(1.0)


def serve_metrics(address: str) -> Page:
    """Serve this process's metrics on "host:port", "host:0" for any port, or ":port" for loopback.

    Raises SettingsError, in one sentence, if that cannot be.
    """
    host, colon, port = address.strip().rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not (colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise SettingsError(f"MESH_METRICS is {address[:80]!r}: write host:port, e.g. 127.0.0.1:9464")
    # Here and not above: from now on there is somebody who reads metrics (`meters`).
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(int(port), host)
    except OSError as e:
        raise SettingsError(
            f"MESH_METRICS: cannot serve metrics on {address[:80]}: {e.strerror or e}; choose another address"
        ) from e
    return Page(host, server, thread)
