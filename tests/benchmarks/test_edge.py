"""What the edges are compared with and called by: the same answers from both, and callers that notice a failure."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench import http1, http2
from bench.edges import SERVICE, answer
from bench.rows.edge import build, edges
from bench.site import Site
from users.v1 import users_pb2

GET = f"/{SERVICE}/GetUser"


def test_the_gateway_and_envoy_give_the_same_answers() -> None:
    async def ask(address: str, *what: Any) -> Any:
        connection = await http1.Connection.open(address)
        try:
            return json.loads(await connection.ask(http1.request(*what)))
        finally:
            connection.close()

    async def both(job: dict[str, Any], *what: Any) -> tuple[Any, Any]:
        return await ask(job["edge"], *what), await ask(job["gateway"], *what)

    with Site(scale=0.1) as site, edges(site) as job:
        got, theirs = asyncio.run(both(job, "GET", "/v1/users/ada", "edge"))
        assert got == theirs
        assert got["id"] == "ada"
        made, theirs = asyncio.run(both(job, "POST", "/v1/users", "edge", b'{"name": "Ada", "email": "a@b.example"}'))
        assert made == theirs
        assert made["name"] == "Ada"
        with pytest.raises(RuntimeError, match="404"):
            asyncio.run(ask(job["gateway"], "GET", "/nowhere", "edge"))


def test_calls_by_hand_are_what_a_grpc_server_understands() -> None:
    async def story() -> None:
        server = grpc.aio.server()
        seen: list[bytes] = []

        async def get(request: bytes, context: Any) -> bytes:
            seen.append(request)
            if len(seen) == 3:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such user")
            return answer()

        methods = {"GetUser": grpc.unary_unary_rpc_method_handler(get)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        connection = await http2.Connection.open(f"127.0.0.1:{port}", GET)
        message = users_pb2.GetUserRequest(id="ada").SerializeToString()
        await connection.ask(message)
        await connection.ask(message)
        with pytest.raises(RuntimeError, match="without a message"):
            await connection.ask(message)
        assert seen == [message] * 3
        connection.close()
        await server.stop(0)

    asyncio.run(story())


@pytest.mark.timeout(600)  # building fetches gRPC for Go once
def test_the_service_in_go_answers_every_call_and_says_that_it_is_well(tmp_path: Path) -> None:
    program = build()
    if program is None:
        pytest.skip("no Go here")

    def call(address: str, path: str) -> bytes:
        with grpc.insecure_channel(address) as channel:
            told: bytes = channel.unary_unary(path)(b"", timeout=10)
            return told

    with subprocess.Popen(
        [program, answer().hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = f"127.0.0.1:{process.stdout.readline().strip()}"
        assert call(address, GET) == answer()
        assert call(address, "/grpc.health.v1.Health/Check") == b"\x08\x01"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0
