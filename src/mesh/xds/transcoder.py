"""ECDS: the filter that turns HTTP/JSON into gRPC, with the descriptors of every known contract in it."""

from __future__ import annotations

from collections.abc import Sequence

from envoy.config.core.v3 import extension_pb2
from envoy.extensions.filters.http.grpc_json_transcoder.v3 import transcoder_pb2

from mesh.xds.resources import Resource, pack

# The name that front.yaml asks for.
TRANSCODER = "transcoder"

# What a server of the mesh takes, and what gRPC's clients take.
_MAX_REQUEST, _MAX_RESPONSE = 1024 * 1024, 4 * 1024 * 1024


def transcoder(descriptors: bytes, services: Sequence[str]) -> Resource:
    """Build the filter. It must know at least one service; one without HTTP annotations is known and never matches."""
    config = transcoder_pb2.GrpcJsonTranscoder(
        proto_descriptor_bin=descriptors,
        services=services,
        # A status becomes a google.rpc.Status in JSON, the shape of every error at the front.
        convert_grpc_status=True,
        # proto3's own JSON: lowerCamelCase out, both spellings in. Fields with their default value are left out.
        print_options=transcoder_pb2.GrpcJsonTranscoder.PrintOptions(),
        # Envoy's default lets whatever it does not know pass on to the instances, which answer with 503.
        request_validation_options=transcoder_pb2.GrpcJsonTranscoder.RequestValidationOptions(
            reject_unknown_method=True,
            reject_unknown_query_parameters=True,
            reject_binding_body_field_collisions=True,
        ),
        # A variable of one path segment takes everything but a slash.
        url_unescape_spec=transcoder_pb2.GrpcJsonTranscoder.ALL_CHARACTERS_EXCEPT_SLASH,
        query_param_unescape_plus=True,
        max_request_body_size={"value": _MAX_REQUEST},
        max_response_body_size={"value": _MAX_RESPONSE},
    )
    message = extension_pb2.TypedExtensionConfig(name=TRANSCODER, typed_config=pack(config))
    return Resource.of(TRANSCODER, message)
