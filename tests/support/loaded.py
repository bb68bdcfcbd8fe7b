"""LoadedService, whose contract asks for load reports: compiled as it is imported, as `support.echo` is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import grpc

# First, so that the compiled contract finds it linked and not as a file.
from grpcmesh.v1 import policy_pb2  # noqa: F401  see above
from mesh.errors import Refusal

for folder in (Path(__file__).parent / "protos", Path(__file__).parents[2] / "proto"):
    if str(folder) not in sys.path:
        # In front: an installed copy of our own contracts may be older.
        sys.path.insert(0, str(folder))

loaded_pb2: Any
loaded_pb2_grpc: Any
loaded_pb2, loaded_pb2_grpc = grpc.protos_and_services("loaded/v1/loaded.proto")

SERVICE = "loaded.v1.LoadedService"
AnswerRequest = loaded_pb2.AnswerRequest
LoadedServiceStub = loaded_pb2_grpc.LoadedServiceStub


class LoadedServicer(loaded_pb2_grpc.LoadedServiceServicer):
    """Answers or refuses; `calls` counts."""

    def __init__(self) -> None:
        self.calls = 0

    async def Answer(self, request: Any, context: Any) -> Any:
        self.calls += 1
        context.set_trailing_metadata((("x-own", "kept"),))
        if request.fail:
            raise Refusal(grpc.StatusCode[request.fail], "was asked to refuse", "ASKED_TO", "loaded.v1")
        return loaded_pb2.AnswerResponse()
