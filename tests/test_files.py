"""Files that are whole or not there, and locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from selfdistill_fast import RBF, distill, spectrum
from selfdistill_fast._files import differences, is_damage, locked, replacing


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_text("old", encoding="utf-8")
    with replacing(path) as aside:
        assert aside.parent == tmp_path
        assert aside.name.endswith(".tar.gz")
        aside.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["a.tar.gz"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old", encoding="utf-8")

    def write():
        with replacing(path) as aside:
            aside.write_text("ne", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a"]


def test_a_fixed_name_is_overwritten(tmp_path):
    path, aside = tmp_path / "a", tmp_path / "a.tmp"
    aside.write_text("left by a killed process", encoding="utf-8")
    with replacing(path, aside) as given:
        assert given == aside
        given.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("sync", [True, False])
def test_the_file_and_its_name_are_forced_to_the_disk(tmp_path, monkeypatch, sync):
    done, real = [], os.fsync

    def counted(handle):
        done.append(os.path.samestat(os.fstat(handle), os.stat(tmp_path)))
        real(handle)

    monkeypatch.setattr(os, "fsync", counted)
    with replacing(tmp_path / "a", sync=sync) as aside:
        aside.write_text("new", encoding="utf-8")
    expected = [False, True] if os.name != "nt" else [False]
    assert done == (expected if sync else [])


@pytest.mark.skipif(os.name == "nt", reason="directories are not forced to the disk there")
def test_a_directory_without_fsync_is_no_error_and_a_failing_disk_is(tmp_path, monkeypatch):
    real, number = os.fsync, errno.EINVAL

    def failing(handle):
        if os.path.samestat(os.fstat(handle), os.stat(tmp_path)):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with replacing(tmp_path / "a") as aside:
        aside.write_text("new", encoding="utf-8")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new"
    number = errno.EIO
    with pytest.raises(OSError, match="rror"), replacing(tmp_path / "b") as aside:
        aside.write_text("new", encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "umask"), reason="no umask on this system")
def test_the_umask_is_respected_and_never_touched(tmp_path, monkeypatch):
    """It belongs to the process: another thread would create files without one meanwhile."""
    pytest.importorskip("pandas")
    from selfdistill_fast.cli.tables import write_table

    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.delattr(os, "umask")
            path = distill(spectrum(np.eye(3), np.ones(3), RBF(1.0)), 0.1, 0.5, 2)
            path.save(tmp_path / "model.npz")
            write_table(tmp_path / "table.csv.gz", ["a"], np.ones((3, 1)))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def test_one_process_holds_a_lock(tmp_path):
    pytest.importorskip("filelock")
    path = tmp_path / "lock"
    held = locked(path)
    with pytest.raises(BlockingIOError, match="another process"):
        locked(path)
    code = "import sys; from pathlib import Path; from selfdistill_fast._files import locked; "
    command = [sys.executable, "-c", code + "locked(Path(sys.argv[1]))", str(path)]
    other = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert "BlockingIOError" in other.stderr
    held.release()
    subprocess.run(command, check=True)
    locked(path).release()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOLCK, errno.ENOSPC])
def test_a_lock_where_nothing_can_be_written(tmp_path, monkeypatch, number):
    filelock = pytest.importorskip("filelock")

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    monkeypatch.setattr(os, "access", lambda *_: number != errno.EROFS)
    if number == errno.ENOSPC:
        with pytest.raises(OSError, match="space"):
            locked(tmp_path / "lock")
    else:
        assert locked(tmp_path / "lock") is None


@pytest.mark.parametrize(
    ("error", "damage"),
    [
        (ValueError("x"), True),
        (EOFError(), True),
        (OSError(errno.EINVAL, "Invalid argument"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError("no number"), True),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (MemoryError(), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), False),
        (RuntimeError("PytorchStreamReader failed finding central directory"), True),
        (ImportError("no zarr"), False),
    ],
)
def test_what_damage_is(error, damage):
    assert is_damage(error) is damage


def test_differences_name_the_leaf():
    stored = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None}
    assert differences(stored, stored) == []
    assert differences(stored, {"a": 1, "b": {"c": [1, 3], "d": "y"}}) == [
        "b.c was [1, 2], is now [1, 3]",
        "b.d was x, is now y",
    ]
