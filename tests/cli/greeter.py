"""A gRPC program that knows nothing of the mesh: plain grpc, health and reflection, its contract built by hand.

    python greeter.py [--no-reflection] [--no-health] [--exit CODE] [--port PORT]

It listens on $PORT unless told otherwise. SIGUSR1 turns its health NOT_SERVING, SIGUSR2 SERVING again.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection

SERVICE = "plain.v1.Greeter"


def contract() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="plain/v1/greeter.proto", package="plain.v1", syntax="proto3")
    file.dependency.extend(["google/protobuf/struct.proto", "google/api/annotations.proto"])
    method = file.service.add(name="Greeter").method.add(
        name="Greet", input_type=".google.protobuf.Struct", output_type=".google.protobuf.Struct"
    )
    method.options.Extensions[annotations_pb2.http].post = "/v1/greetings"
    method.options.Extensions[annotations_pb2.http].body = "*"
    return file


def greet(request: struct_pb2.Struct, context: grpc.ServicerContext) -> struct_pb2.Struct:
    answer = struct_pb2.Struct()
    answer["text"] = f"Hello, {dict(request).get('name', 'you')}!"
    return answer


def main() -> None:
    descriptor_pool.Default().Add(contract())
    server = grpc.server(ThreadPoolExecutor(4))
    handler = grpc.unary_unary_rpc_method_handler(
        greet, struct_pb2.Struct.FromString, struct_pb2.Struct.SerializeToString
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Greet": handler})])
    servicer = health.HealthServicer()
    if "--no-health" not in sys.argv:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if "--no-reflection" not in sys.argv:
        reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = sys.argv[sys.argv.index("--port") + 1] if "--port" in sys.argv else os.environ["PORT"]
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    signal.signal(signal.SIGUSR1, lambda *_: servicer.set("", HealthCheckResponse.NOT_SERVING))
    signal.signal(signal.SIGUSR2, lambda *_: servicer.set("", HealthCheckResponse.SERVING))
    signal.signal(signal.SIGTERM, lambda *_: server.stop(1))
    print(f"pid {os.getpid()}", flush=True)
    if "--exit" in sys.argv:
        sys.exit(int(sys.argv[sys.argv.index("--exit") + 1]))
    while server.wait_for_termination(0.1):
        pass


if __name__ == "__main__":
    main()
