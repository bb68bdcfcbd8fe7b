"""grpcurl, the curl of gRPC: `make tools` builds it where Go is. Without it a test skips, or fails where CI is set."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

_BUILT = Path(__file__).parents[2] / ".tools" / "bin" / "grpcurl"


def binary() -> str:
    """Return the path of grpcurl; skip the test (fail it under CI) if there is none."""
    found = str(_BUILT) if os.access(_BUILT, os.X_OK) else shutil.which("grpcurl")
    if found:
        return found
    reason = "grpcurl is not here: install Go and run `make tools`"
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(reason)
    pytest.fail(reason)


class Grpcurl:
    """grpcurl aimed at one address, in plain text or with the TLS files "ca", "cert" and "key"."""

    def __init__(self, address: str, tls: Mapping[str, str] | None = None, *, authority: str = "") -> None:
        self.address = address
        self._flags = ["-max-time", "15"]
        if tls:
            self._flags += ["-cacert", tls["ca"]]
            if "cert" in tls:
                self._flags += ["-cert", tls["cert"], "-key", tls["key"]]
        else:
            self._flags.append("-plaintext")
        if authority:
            self._flags += ["-authority", authority]

    def run(self, *arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run it with `arguments` after the address and `flags` before it; whatever the outcome."""
        command = [binary(), *self._flags, *flags, self.address, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def ask(self, *arguments: str, flags: tuple[str, ...] = ()) -> str:
        """Run it and return what it printed; fail the test if it did not succeed."""
        done = self.run(*arguments, flags=flags)
        assert done.returncode == 0, f"grpcurl {' '.join(arguments)}: {done.stderr or done.stdout}"
        return done.stdout

    def call(self, method: str, request: Mapping[str, Any]) -> Any:
        """Call a method, known by reflection, and return the answer's JSON."""
        return json.loads(self.ask(method, flags=("-d", json.dumps(request))) or "{}")
