"""What the rows about discovery count with."""

from __future__ import annotations

from envoy.config.core.v3.base_pb2 import ControlPlane
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import Finding
from bench.rows import discovery
from bench.watchers import head
from bench.watching import Seen

texts = st.text(min_size=1, max_size=300)


@given(texts, texts, texts, st.lists(st.binary(max_size=20_000), max_size=3))
def test_a_bare_client_reads_the_nonce_and_passes_over_the_endpoints(
    version: str, kind: str, nonce: str, bodies: list[bytes]
) -> None:
    answer = DiscoveryResponse(
        version_info=version,
        type_url=kind,
        nonce=nonce,
        resources=[Any(type_url=kind, value=body) for body in bodies],
        control_plane=ControlPlane(identifier="a test"),
    )
    assert head(answer.SerializeToString()) == {"version_info": version, "type_url": kind, "nonce": nonce}


def test_a_machine_that_moved_while_stubs_were_measured_shows() -> None:
    def told(*visits: float) -> float:
        notice = Finding(1.0)
        discovery._again(Seen([[delay] for delay in visits for _ in range(3)]), notice)
        found: float = notice.facts["stubs_again"]
        return found

    assert told(2, 2, 2, 2) == 1
    assert told(2, 3, 4, 6) == 1.5
    assert told(3, 2, 6, 4) == 2 / 3
