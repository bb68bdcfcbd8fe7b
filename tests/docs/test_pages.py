"""docs/, as written: every command and snippet is run here, or stands in a table that says by which test it is."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import mesh
from mesh.cli.gen import includes
from mesh.contract.policies import policies_of_set
from mesh.controlplane import ControlPlane
from mesh.instance import Endpoint
from mesh.policy import Balancer, BreakerMode
from mesh.telemetry import logs
from support.etcd import Etcd
from support.front import SERVICE, Tiny
from support.stories import until
from support.views import Views, instance

DOCS = Path(__file__).parents[2] / "docs"

# Commands that other tests run, or that nobody should: what they show was seen once, elsewhere.
ELSEWHERE = {
    "mesh up --tls": "tests/cli/test_up.py",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317 python server.py": "tests/telemetry/test_tracing.py",
    "pip install 'grpc-mesh[otel]'": "pyproject.toml",
    "python -m venv v && v/bin/pip install etcd3 'protobuf>=7'": "docs/faq-etcd3.md",
    "v/bin/python -c 'import etcd3'": "docs/faq-etcd3.md",
    "make drills": "tests/drills/test_short.py",
    "make drills FAULT=hung": "tests/drills/test_short.py",
    "make drills ARGS=\"--since '2026-11-22 12:00'\"": "tests/drills/test_machinery.py",
    "make soak": "tests/drills/test_short.py",
    "make bench": "tests/benchmarks/test_bench.py",
    "make bench ROW=client": "tests/benchmarks/test_bench.py",
    "make bench-quick": "tests/benchmarks/test_bench.py",
    "python -m bench --list": "tests/benchmarks/test_bench.py",
    "python -m bench --compare A B": "tests/benchmarks/test_bench.py",
}


def snippets(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the commands of the console blocks on a page, without the remarks behind them."""
    lines = [line for block in snippets(page, "console") for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE)]
    return [re.sub(r"\s{2,}# .*", "", line) for line in lines]


def test_every_command_of_a_page_is_run_by_a_test() -> None:
    ours = commands("policies.md") + commands("simulation.md")  # the latter in test_simulation.py
    for page in sorted(DOCS.glob("*.md")):
        for command in commands(page.name):
            where = ELSEWHERE.get(command, "no test")
            assert command in ours or (DOCS.parent / where).exists(), f"{page.name}: {where} runs `{command}`"


@pytest.mark.parametrize("page", ["policies.md", "balancing.md"])
def test_the_contract_of_a_page_compiles_and_means_what_it_says(page: str, tmp_path: Path) -> None:
    snippet = snippets(page, "proto")[0].replace('import "grpcmesh/v1/policy.proto";', "")
    if "  rpc " not in snippet:
        snippet = snippet.replace("\n}\n", "\n  rpc GetUser(GetUserRequest) returns (User) {}\n}\n")
    head = 'syntax = "proto3";\npackage shop.v1;\nimport "grpcmesh/v1/policy.proto";\n'
    (tmp_path / "shop.proto").write_text(f"{head}{snippet}\nmessage GetUserRequest {{}}\nmessage User {{}}\n")
    paths = [f"-I{folder}" for folder in (tmp_path, *includes())]
    out = tmp_path / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", *paths, "--include_imports", f"--descriptor_set_out={out}"]
    subprocess.run([*command, "shop.proto"], check=True)

    found = policies_of_set(out.read_bytes(), "shop.v1.UserService")

    policy = found["/shop.v1.UserService/GetUser"]
    if page == "policies.md":
        assert (policy.timeout, policy.retry.max_attempts, policy.idempotent) == (1.0, 3, True)
    else:
        assert policy.balancer.kind is Balancer.LEAST_LOADED


def test_an_operators_override_reaches_clients_as_written(etcd: Etcd, tmp_path: Path) -> None:
    put, delete = (shlex.split(command.replace("mesh/", f"{tmp_path.name}/")) for command in commands("policies.md"))
    [hinted] = re.findall(r"`(etcdctl put mesh/[^`]*)`", (DOCS / "balancing.md").read_text())
    balanced = shlex.split(hinted.replace("mesh/", f"{tmp_path.name}/"))
    [hinted] = re.findall(r"`(etcdctl put mesh/[^`]*)`", (DOCS / "resilience.md").read_text())
    watched = shlex.split(hinted.replace("mesh/", f"{tmp_path.name}/"))
    settings = mesh.Settings(etcd=(Endpoint.parse(etcd.endpoint),), prefix=tmp_path.name)

    async def story() -> None:
        async with mesh.connect("users.v1.UserService", settings=settings) as channel:

            def policy() -> Any:
                return channel._policies.of("/users.v1.UserService/GetUser")

            before = policy()
            await asyncio.to_thread(etcd.ctl, *put[1:])
            await until(lambda: (policy().timeout, policy().retry.max_attempts) == (2.0, 2))
            await asyncio.to_thread(etcd.ctl, *balanced[1:])
            await until(lambda: policy().balancer.kind is Balancer.LEAST_LOADED)
            await asyncio.to_thread(etcd.ctl, *watched[1:])
            await until(lambda: policy().breaker.mode is BreakerMode.METRICS_ONLY)
            await asyncio.to_thread(etcd.ctl, *delete[1:])
            await until(lambda: policy() == before)

    asyncio.run(story())


def test_a_role_for_the_mesh_is_made_as_written(etcd: Etcd) -> None:
    [grant] = snippets("production.md", "text")
    etcd.ctl("role", "add", "mesh")
    etcd.ctl(*shlex.split(grant)[1:])
    assert etcd.ctl("role", "get", "mesh").count("(prefix mesh/)") == 2  # to read and to write


def test_the_bootstrap_of_a_proxyless_client_works_as_written(tmp_path: Path) -> None:
    program = (
        "import grpc; from users.v1 import users_pb2, users_pb2_grpc;"
        f"stub = users_pb2_grpc.UserServiceStub(grpc.insecure_channel('xds:///{SERVICE}'));"
        "stub.ListUsers(users_pb2.ListUsersRequest(), timeout=20, wait_for_ready=True); print('served')"
    )

    async def story() -> str:
        async with Tiny() as server, ControlPlane(views := Views()) as plane:
            views.set(SERVICE, instance(SERVICE, 1, server.port))
            [bootstrap] = snippets("production.md", "json")
            (tmp_path / "bootstrap.json").write_text(bootstrap.replace("control-plane:18000", str(plane.endpoint)))
            env = {**os.environ, "GRPC_XDS_BOOTSTRAP": str(tmp_path / "bootstrap.json")}
            pipe = asyncio.subprocess.PIPE
            client = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=env, stdout=pipe)
            return (await client.communicate())[0].decode()

    assert asyncio.run(story()) == "served\n"


def test_a_caller_serves_its_metrics_as_written() -> None:
    [snippet] = snippets("metrics.md", "python")
    said: dict[str, Any] = {}
    exec(snippet.replace(":9464", ":0"), said)
    with urllib.request.urlopen(f"http://{said['page'].address}/metrics") as page:
        assert b"mesh_client_calls_total" in page.read()
    said["page"].close()


def test_a_line_of_ones_own_is_logged_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    [snippet] = snippets("logs-and-traces.md", "python")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logs.Formatter("orders.v1.OrderService"))
    log = logging.getLogger("shop.orders")
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "level", logging.INFO)
    exec(snippet, {"logging": logging, "__name__": log.name})
    told = json.loads(handler.stream.getvalue())
    assert (told["message"], told["event.action"], told["mesh.rows"]) == ("imported", "imported", 12)
