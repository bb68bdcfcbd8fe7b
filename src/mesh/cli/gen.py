"""`mesh gen`: stubs from `.proto` files with the includes that a mesh contract needs, and nothing to look up.

It is protoc as grpcio-tools carries it, with Google's common files (`google/api/annotations.proto`) and the policy
options (`grpcmesh/v1/policy.proto`) on the path. A team that has its own protoc or buf set-up needs none of this.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from google.rpc import status_pb2

from grpcmesh.v1 import policy_pb2
from mesh.cli.failure import MISUSED, Failure

_POLICY = "grpcmesh/v1/policy.proto"


def includes() -> tuple[Path, ...]:
    """Return the folders that hold what contracts import beyond protobuf's own files."""
    beside = Path(policy_pb2.__file__).parents[2]
    # A wheel carries policy.proto beside its module. A checkout has it in proto/, which comes first: installing it has
    # left a copy, as it was then, where Google's files are.
    policy = beside if (beside / _POLICY).is_file() else beside.parent / "proto"
    return policy, Path(status_pb2.__file__).parents[2]


def generate(protos: Sequence[Path], root: Path, out: Path) -> list[Path]:
    """Write messages, stubs and their types for `protos`, whose imports start at `root`; return the files written.

    Raises Failure with protoc's own words where a contract is wrong.
    """
    if find_spec("grpc_tools") is None:
        raise Failure("mesh gen needs protoc: run pip install 'grpc-mesh[local]' or grpcio-tools", code=MISUSED)
    root = root.resolve()
    names = [_name_below(root, proto) for proto in protos]
    out.mkdir(parents=True, exist_ok=True)
    # Google's own files (descriptor.proto, timestamp.proto) come with grpc_tools and are found by itself.
    paths = [f"-I{folder}" for folder in (root, *includes())]
    command = [sys.executable, "-m", "grpc_tools.protoc", *paths, f"--python_out={out}", f"--pyi_out={out}"]
    done = subprocess.run(  # noqa: S603  our own interpreter; the names were checked to be files
        [*command, f"--grpc_python_out={out}", *names], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Failure("protoc refused the contract:", hint=done.stderr.strip())
    stems = [name.removesuffix(".proto") for name in names]
    return [path for stem in stems for path in sorted(out.glob(f"{stem}_pb2*.py*"))]


def _name_below(root: Path, proto: Path) -> str:
    if not proto.is_file():
        raise Failure(f"there is no file {proto}", code=MISUSED)
    try:
        return str(proto.resolve().relative_to(root))
    except ValueError:
        raise Failure(f"{proto} is not below {root}: name its root with --root", code=MISUSED) from None
