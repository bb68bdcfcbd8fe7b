"""Turns among writers: fair where they can be had, never in the way where they cannot."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from usersvc.sqlite_turn import Turn


def test_a_turn_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    one, other = Turn(tmp_path / "users.db"), Turn(tmp_path / "users.db")
    one.take(1)
    begun = time.monotonic()
    other.take(0.05)  # done without
    assert not other._mine
    assert time.monotonic() - begun < 1
    one.give_back()
    other.take(1)
    assert other._mine
    for turn in (one, other):
        turn.close()


def test_the_turn_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    code = "from usersvc.sqlite_turn import Turn; Turn(pathlib.Path(sys.argv[1])).take(1); os._exit(1)"
    subprocess.run(
        [sys.executable, "-c", f"import os, pathlib, sys; {code}", str(tmp_path / "users.db")],
        check=False,
        capture_output=True,
    )
    turn = Turn(tmp_path / "users.db")
    turn.take(1)
    assert turn._mine
    turn.close()


def test_where_there_can_be_no_file_writers_do_without(tmp_path: Path) -> None:
    turn = Turn(tmp_path / "missing" / "users.db")
    begun = time.monotonic()
    turn.take(5)
    assert time.monotonic() - begun < 1
    turn.give_back()
    turn.close()
