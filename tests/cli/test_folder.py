"""The data folder: one owner at a time, and one sentence for whatever is wrong with the file system."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.cli.failure import Failure
from mesh.cli.folder import MARK, DataFolder, read_stack


def test_a_second_owner_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    first = DataFolder(tmp_path)
    first.take()
    with pytest.raises(Failure) as refused:
        DataFolder(tmp_path).take()
    assert str(refused.value) == f"another `mesh up` (pid {os.getpid()}) uses {tmp_path}: stop it or choose --data"
    first.release()
    DataFolder(tmp_path).take()


def test_what_a_killed_stack_has_told_is_not_believed(tmp_path: Path) -> None:
    for name in ("stack.json", "env"):
        (tmp_path / name).write_text("old")
    (tmp_path / "hold").mkdir()
    (tmp_path / "hold" / "users-1").touch()
    folder = DataFolder(tmp_path)
    folder.take()
    assert not folder.stack.exists()
    assert not folder.env.exists()
    assert list(folder.hold.iterdir()) == []


def test_processes_left_by_a_killed_stack_are_ended_and_others_are_not(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]

    def start(mark: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(sleep, env=os.environ | {MARK: str(mark.resolve())}, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    with start(tmp_path) as ours, start(tmp_path.parent) as another:
        DataFolder(tmp_path).take()
        assert ours.wait(10) == -9
        assert another.poll() is None
        another.kill()


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Failure, match="choose another folder with --data") as refused:
            DataFolder(path).take()
        assert str(tmp_path / "file") in str(refused.value)
        assert refused.value.code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Failure, match=r"Permission denied: choose a folder that you may write with --data"):
        DataFolder(tmp_path / "mesh").take()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space, or choose another folder with --data"),
        (errno.EROFS, "choose a folder that can be written with --data"),
        (errno.EACCES, "choose a folder that you may write with --data"),
        (errno.EIO, "choose another folder with --data"),
    ],
)
def test_errors_of_the_disk_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    folder = DataFolder(tmp_path)

    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(Failure) as refused:
        folder.take()
    assert str(refused.value) == f"cannot write {tmp_path}: {os.strerror(number)}: {remedy}"


def test_what_is_told_is_complete_private_and_for_shells_too(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.take()
    folder.tell({"edge": "127.0.0.1:1"}, {"MESH_ETCD": "127.0.0.1:2", "MESH_TLS_CA": "/a b/ca.pem"})
    assert json.loads(folder.stack.read_text()) == {"edge": "127.0.0.1:1"}
    assert folder.stack.stat().st_mode & 0o077 == 0
    shell = f'. {folder.env} && printf "%s %s" "$MESH_ETCD" "$MESH_TLS_CA"'
    assert subprocess.check_output(["sh", "-c", shell], text=True) == "127.0.0.1:2 /a b/ca.pem"
    folder.release()
    assert not folder.stack.exists()
    assert not folder.env.exists()


@pytest.mark.parametrize("content", [None, "", "{", "[]", '"x"'])
def test_a_stack_that_cannot_be_read_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "stack.json").write_text(content)
    assert read_stack(tmp_path) is None
