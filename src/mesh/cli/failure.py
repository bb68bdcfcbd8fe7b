"""What ends a command early: one sentence for people and an exit code. Never shown with a traceback."""

from __future__ import annotations

from mesh.errors import MeshError

FAILED = 1
"""Something did not work."""
MISUSED = 2
"""What was asked for cannot be: an option, a setting, a folder, a port."""
INTERRUPTED = 130
"""Ended by Ctrl-C before it was done (128 + SIGINT, as shells count)."""


class Failure(MeshError):
    """An expected end. `str()` is the sentence; `hint` are further lines, e.g. the end of a log."""

    def __init__(self, sentence: str, *, code: int = FAILED, hint: str = "") -> None:
        super().__init__(sentence)
        self.code = code
        self.hint = hint
