"""Atomic file replacement, directories owned by one process, and detection of damaged files.

Every file that must survive a kill, a crash or a full disk is written by :func:`replacing`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["differences", "is_damage", "locked", "replacing"]

#: errors of a file system that has no fsync for directories
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
#: errors of a file system that has no locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def replacing(path: Path, aside: Path | None = None, *, sync: bool = True) -> Iterator[Path]:
    """A path to write to; at the end of the block that file replaces ``path`` in one step.

    After an error the old file remains, without any part of the new one.

    Parameters
    ----------
    path : Path
    aside : Path, optional
        Where to write, in the same file system. Default: a new name next to ``path`` with the same
        suffixes. A fixed name is overwritten. Use one where only one process writes, so that a
        killed process leaves at most one such file.
    sync : bool
        Force the file and its name to the disk, so that they survive a crash of the system.
    """
    if aside is None:
        # the writer creates the file, so that it gets the permissions of an ordinary new file
        aside = path.with_name(f".tmp-{secrets.token_hex(8)}{''.join(path.suffixes[-2:])}")
    try:
        yield aside
        if sync:
            with aside.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(aside, path)
        if sync:
            _sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    """Force the names in a directory to the disk, where the system can do that."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(handle)


def locked(path: Path) -> Any:
    """A lock on a file, held until its ``release()`` or until this process ends in any way.

    None if locking is impossible: the directory is not writable, or the file system has no
    locks.

    Raises
    ------
    BlockingIOError
        Another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            errno.EWOULDBLOCK, "another process holds the lock", str(path)
        ) from None
    except NotImplementedError:
        return None
    except OSError as error:
        read_only = path.parent.is_dir() and not os.access(path.parent, os.W_OK)
        if read_only or error.errno in _NO_LOCKS:
            return None
        raise
    return lock


def is_damage(error: Exception) -> bool:
    """Whether an error in reading a file is due to its content, not to memory or the system."""
    if isinstance(error, OSError):
        # a position before the start; a disk that cannot be read there
        return error.errno in (None, errno.EINVAL, errno.EIO)
    no_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)  # torch's
    return not (no_memory or isinstance(error, ImportError))


def differences(stored: Any, wanted: Any, where: str = "") -> list[str]:
    """The leaves in which two trees of JSON values differ, as text."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        changes = []
        for key in {**stored, **wanted}:
            name = f"{where}.{key}" if where else key
            changes += differences(stored.get(key), wanted.get(key), name)
        return changes
    if stored == wanted:
        return []
    was, now = (v if isinstance(v, str) else json.dumps(v) for v in (stored, wanted))
    same = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), 0)
    return [f"{where} was {_excerpt(was, same)}, is now {_excerpt(now, same)}"]


def _excerpt(text: str, same: int, limit: int = 160) -> str:
    """A text, or, if it is long, the part around its first difference from another."""
    start = max(0, same - limit // 2) if len(text) > limit else 0
    return "… " * (start > 0) + text[start : start + limit] + " …" * (len(text) > start + limit)
