"""A control plane that can be made to send what Envoy refuses: `DRILL_PLANE=path python -m drills.plane …`, with the
arguments of `mesh`. While the file is there, the clusters that it builds wait a negative time for a connection.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from mesh.xds import clusters
from mesh.xds.resources import Resource

_sound = clusters.cluster_for_envoy


def _sick(*arguments: Any, **more: Any) -> Resource:
    made = _sound(*arguments, **more)
    if not Path(os.environ["DRILL_PLANE"]).exists():
        return made
    from envoy.config.cluster.v3.cluster_pb2 import Cluster

    message = Cluster.FromString(made.body)
    message.connect_timeout.FromSeconds(-1)
    return Resource.of(made.name, message, *made.needs)


if __name__ == "__main__":
    clusters.cluster_for_envoy = _sick
    from mesh.cli import main

    sys.argv[0] = "mesh"
    main()
