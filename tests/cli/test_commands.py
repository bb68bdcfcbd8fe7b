"""The command line itself: help, exit codes, one sentence for each mistake, colours where they belong."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from mesh.cli.app import cli
from mesh.etcd import EtcdStore
from mesh.instance import Endpoint, Instance, State
from mesh.registry.record import encode, instance_key
from mesh.settings import Settings
from support.etcd import Etcd
from support.ports import free_port

COMMANDS = ["up", "ls", "watch", "run", "control-plane", "gen", "version"]
STARTED = 1_700_000_000.0


def mesh(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MESH_")}
    return subprocess.run(
        [sys.executable, "-m", "mesh", *arguments],
        cwd=cwd,
        env=kept | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )


def register(etcd: Etcd, prefix: str, *instances: Instance) -> None:
    async def story() -> None:
        settings = Settings(etcd=(Endpoint.parse(etcd.endpoint),))
        async with EtcdStore.from_settings(settings) as store:
            for instance in instances:
                await store.put(instance_key(prefix, instance), encode(instance))

    asyncio.run(story())


def instance(name: str, state: State = State.READY, service: str = "a.v1.A", zone: str = "") -> Instance:
    return Instance(service, name, Endpoint("127.0.0.1", 5000), zone=zone, state=state, started=STARTED)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    told = CliRunner().invoke(cli, [command, "--help"])
    assert told.exit_code == 0
    assert f"Usage: cli {command}" in told.output
    assert len(told.output.splitlines()) > 4
    assert "Traceback" not in told.output


def test_help_names_every_command_and_fits_80_columns() -> None:
    told = CliRunner().invoke(cli, ["--help"], terminal_width=80)
    assert [name for name in COMMANDS if f"  {name} " in told.output] == COMMANDS
    assert all(len(line) <= 80 for line in told.output.splitlines())


def test_an_address_is_told_as_it_is_written() -> None:
    assert "[default: 127.0.0.1:18000]" in CliRunner().invoke(cli, ["control-plane", "--help"]).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("frobnicate",), "mesh: no such command 'frobnicate'"),
        (("up", "--port", "99999"), "mesh: invalid value for '--port'"),
        (("up", "--nonsense"), "mesh: "),
        (("up", "--etcd", "nowhere"), "'nowhere' is no address: write host:port"),
        (("ls", "a/b"), "'a/b' is no service name"),
        (("run",), "mesh: missing argument 'PROGRAM...'"),
        (("up", "--", "no-such-program"), "mesh: cannot run no-such-program: there is no such program"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = mesh(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_setting_is_one_sentence_and_exits_2(tmp_path: Path) -> None:
    done = mesh("ls", cwd=tmp_path, env={"MESH_ETCD": "here"})
    assert done.returncode == 2
    assert done.stderr.startswith("mesh: MESH_ETCD: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["ls", "watch"])
def test_etcd_away_is_one_sentence_and_exits_1(tmp_path: Path, command: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = mesh(command, cwd=tmp_path, env={"MESH_ETCD": address})
    assert done.returncode == 1
    assert done.stderr.startswith(f"mesh: cannot reach etcd at {address}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_its_extra_the_command_says_what_to_install(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    done = mesh("ls", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == f"mesh: the command needs {module}: run pip install 'grpc-mesh[cli]'\n"


def test_ls_shows_services_instances_and_what_they_say_of_themselves(tmp_path: Path, etcd: Etcd) -> None:
    register(
        etcd, tmp_path.name,
        instance("a-1"), instance("a-2", State.DRAINING, zone="east"), instance("b-1", State.PAUSED, "b.v1.B"),
    )  # fmt: skip
    env = {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name}
    done = mesh("ls", cwd=tmp_path, env=env)
    assert done.returncode == 0
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["SERVICE", "INSTANCE", "STATE", "ADDRESS", "ZONE", "AGE"]
    assert [row[:-1] for row in rows] == [
        ["a.v1.A", "a-1", "ready", "127.0.0.1:5000"],
        ["a-2", "draining", "127.0.0.1:5000", "east"],
        ["b.v1.B", "b-1", "paused", "127.0.0.1:5000"],
    ]
    assert all(re.fullmatch(r"\d+d", row[-1]) for row in rows)
    assert "\x1b" not in done.stdout


def test_ls_json_is_for_programs(tmp_path: Path, etcd: Etcd) -> None:
    register(etcd, tmp_path.name, instance("a-1"), instance("b-1", service="b.v1.B"))
    env = {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name, "COLUMNS": "20"}
    done = mesh("ls", "a.v1.A", "--json", cwd=tmp_path, env=env)
    [service] = json.loads(done.stdout)
    assert service["service"] == "a.v1.A"
    assert service["instances"] == [
        {
            "id": "a-1", "state": "ready", "address": "127.0.0.1:5000", "zone": "", "version": "", "weight": 1,
            "started": "2023-11-14T22:13:20.000+00:00", "contract": "",
        }
    ]  # fmt: skip


def test_ls_of_a_service_without_instances_exits_1(tmp_path: Path, etcd: Etcd) -> None:
    env = {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name}
    done = mesh("ls", "a.v1.A", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (1, "a.v1.A has no instance.\n")
    assert mesh("ls", cwd=tmp_path, env=env).stdout == "Nothing is registered.\n"
    assert mesh("ls", "--json", cwd=tmp_path, env=env).stdout == "[]\n"


def test_ls_says_how_many_records_it_could_not_read(tmp_path: Path, etcd: Etcd) -> None:
    etcd.ctl("put", f"{tmp_path.name}/services/a.v1.A/broken", "{")
    done = mesh("ls", cwd=tmp_path, env={"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name})
    assert "1 records could not be read and were skipped." in done.stdout


def test_ls_finds_the_stack_that_runs_in_its_folder(tmp_path: Path, etcd: Etcd) -> None:
    (tmp_path / ".mesh").mkdir()
    variables = {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name}
    (tmp_path / ".mesh" / "stack.json").write_text(json.dumps({"variables": variables}))
    assert mesh("ls", cwd=tmp_path).stdout == "Nothing is registered.\n"


def test_watch_prints_a_line_per_change_and_leaves_quietly_on_ctrl_c(tmp_path: Path, etcd: Etcd) -> None:
    env = os.environ | {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name}
    register(etcd, tmp_path.name, instance("a-1"))
    with subprocess.Popen(
        [sys.executable, "-m", "mesh", "watch"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().endswith("  + a.v1.A a-1 127.0.0.1:5000 ready\n")
        register(etcd, tmp_path.name, instance("a-1", State.DRAINING))
        assert watch.stdout.readline().endswith("  ~ a.v1.A a-1 127.0.0.1:5000 draining\n")
        watch.send_signal(signal.SIGINT)
        out, err = watch.communicate(timeout=10)
    assert (watch.returncode, out, err.strip()) == (130, "", "")


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(
    tmp_path: Path, etcd: Etcd, env: Mapping[str, str], coloured: bool
) -> None:
    register(etcd, tmp_path.name, instance("a-1"))
    variables = os.environ | {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name, "TERM": "xterm-256color"}
    variables.pop("NO_COLOR", None)
    parent, child = pty.openpty()
    subprocess.run([sys.executable, "-m", "mesh", "ls"], env=variables | env, stdout=child, timeout=30, check=True)
    os.close(child)
    told = os.read(parent, 65536).decode()
    os.close(parent)
    assert ("\x1b[32mready" in told) is coloured
    assert "a-1" in told


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path, etcd: Etcd) -> None:
    register(etcd, tmp_path.name, *(instance(f"a-{n}") for n in range(500)))
    env = os.environ | {"MESH_ETCD": etcd.endpoint, "MESH_PREFIX": tmp_path.name}
    command = f"{sys.executable} -m mesh ls --json | head -1"
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, timeout=30)
    assert done.stdout == "[\n"
    assert "Traceback" not in done.stderr


def test_version_names_what_it_stands_on() -> None:
    told = CliRunner().invoke(cli, ["version"]).output
    assert re.match(r"grpc-mesh \d", told)
    assert "grpcio 1." in told
