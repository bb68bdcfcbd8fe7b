"""What a process of a drill may be given instead of the machine's own: another wall clock, a small disk."""

from __future__ import annotations

import os
import struct
import subprocess
import sysconfig
from pathlib import Path
from typing import Self

_SOURCE = Path(__file__).parent / "clock.c"
_DISK_MIB = 16


def python_path() -> str:
    """Where processes of drills find the drills."""
    return os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


class MovedClock:
    """A wall clock that all processes with its environment share. Needs a C compiler."""

    def __init__(self, folder: Path) -> None:
        self._offset, library = folder / "clock", folder / "clock.so"
        self.move(0)
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "DRILL_CLOCK": str(self._offset)}

    def move(self, seconds: int) -> None:
        """Set it so many seconds off, at once."""
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:  # mapped: written in place
            file.write(struct.pack("q", seconds))


class Disk:
    """A file system of a few MiB, seen only by processes whose command begins with `entered`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._pid = folder.with_suffix(".pid")
        enter = 'exec nsenter -t "$(cat "$0")" --user --preserve-credentials --mount "$@"'
        self.entered = ["sh", "-c", enter, str(self._pid)]
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        mount = f"mount -t tmpfs -o size={_DISK_MIB}m none '{self.folder}' && echo mounted && exec sleep 3600"
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            raise RuntimeError("no file system of its own can be made here")
        self._pid.write_text(str(self._holder.pid))
        return self

    def __exit__(self, *_: object) -> None:
        assert self._holder is not None
        self._holder.kill()
        self._holder.communicate()

    @property
    def inside(self) -> Path:
        """The folder, as it is seen from outside."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root") / str(self.folder).lstrip("/")

    def fill(self) -> None:
        """Leave no room."""
        with (self.inside / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def empty(self) -> None:
        """Leave room again."""
        (self.inside / "filler").unlink()
