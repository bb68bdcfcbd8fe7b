"""The control plane: the registry in, xDS out, for Envoy at the edge and for gRPC's own clients.

`plane` follows the registry, `catalog` and `contracts` decide what it means, `ads` serves the streams, `server` binds
the port; `front` writes Envoy's own file for one place. The messages and the protocol are `mesh.xds`. Needs the extra
`controlplane`.
"""

from mesh.controlplane.program import run
from mesh.controlplane.server import ControlPlane

__all__ = ["ControlPlane", "run"]
