"""A crash-safe zarr store: one group per piece of work, either finished or absent.

::

    store/                      a zarr hierarchy (format 2: zarr-python 2 and 3 read it)
      kernel-0000/  …           finished groups, an xarray.Dataset each
      .sweep/manifest.json      what the store was made for; anything else is rejected
      .sweep/done/….json        markers: sizes and checksums of the files of a group
      .sweep/writing/…          groups that are being written
      .sweep/lock               held while a process works here

A group is written to a temporary location, renamed, and finally marked. Each step is atomic, so a
group with a marker is complete whenever the process is killed. Everything else is a leftover,
never read, and removed by the next process. A damaged file no longer matches the checksum in the
marker, and its group is recomputed. Because the checksums show what reached the disk, only the
manifest is synchronised to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfdistill_fast._files import differences, is_damage, locked, replacing
from selfdistill_fast._validation import warn_caller

__all__ = ["Store", "group_names", "read_group", "read_manifest"]

_FORMAT = "selfdistill_fast sweep store, version 1"
_GROUP = re.compile(r"kernel-\d{4,}")
#: what to do about an error, by its number
_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space",
    errno.EFBIG: "Raise the limit on the size of files",
    errno.EROFS: "Make it writable",
    errno.EACCES: "Make it writable",
    errno.EPERM: "Make it writable",
}


def group_names(count: int) -> list[str]:
    """Names of the groups for a number of pieces of work."""
    return [f"kernel-{i:04d}" for i in range(count)]


class Store:
    """The store of one sweep, open and locked; a context manager.

    Parameters
    ----------
    path : path
        Created if it does not exist.
    manifest : dict of JSON values
        What the results depend on.
    names : sequence of str
        Groups of the finished store, in order.
    free : dict of JSON values, optional
        Entries of a new manifest that may have any value; an existing manifest keeps its own.
    overwrite : bool
        Discard the contents and the manifest of an existing store.

    Attributes
    ----------
    manifest : dict
        As stored.

    Raises
    ------
    ValueError
        The store was made for something else (the message names the differences), or the
        path is not such a store.
    BlockingIOError
        Another process is using this store.
    OSError
        The store cannot be written; finished groups remain.
    """

    def __init__(
        self,
        path: Any,
        manifest: dict[str, Any],
        names: Sequence[str],
        *,
        free: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.names = list(names)
        self._own = self.path / ".sweep"
        self._lock: Any = None
        wanted = json.loads(json.dumps({"format": _FORMAT, **manifest}, allow_nan=False))
        with self._writing():
            _refuse_strangers(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
        try:
            self._agree(wanted, free or {}, overwrite)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ------------------------------------------------------------------ opening
    def _acquire(self) -> None:
        """Take the lock; a finished read-only store needs none."""
        with contextlib.suppress(OSError):
            self._own.mkdir(exist_ok=True)
        try:
            self._lock = locked(self._own / "lock")
        except BlockingIOError:
            raise _plain(
                BlockingIOError,
                errno.EWOULDBLOCK,
                f"another process is using the store {self.path}: wait for it, or give this "
                "sweep another store",
            ) from None

    def _agree(self, wanted: dict[str, Any], free: dict[str, Any], overwrite: bool) -> None:
        """Compare the manifest with the stored one, or write it if there is none."""
        if overwrite or not _manifest(self.path).exists():
            stored = {**free, **wanted}
            with self._writing():
                _remove(self._own / "done")
                self._write_json(_manifest(self.path), stored, sync=True)
        else:
            stored = _stored_manifest(self.path)
            wanted = {**{key: stored.get(key) for key in free}, **wanted}
            changes = differences(stored, wanted)
            if changes:
                raise ValueError(
                    f"the store {self.path} was made for something else: "
                    + "; ".join(changes)
                    + ". Give this sweep another store, or discard that one with overwrite=True"
                )
        self.manifest = stored
        self._identity = _digest(json.dumps(stored, sort_keys=True).encode())
        if not (self.path / ".zgroup").exists():
            with self._writing():
                self._write_json(self.path / ".zgroup", {"zarr_format": 2})
        self._clean()

    def _clean(self) -> None:
        """Remove what an interrupted process or another manifest left behind."""
        finished = {name for name in self.names if self._marker(name) is not None}
        leftovers = [
            entry
            for entry in self.path.iterdir()
            if _GROUP.fullmatch(entry.name) and entry.name not in finished
        ]
        for folder, kept in (("writing", set()), ("done", {f"{name}.json" for name in finished})):
            if (self._own / folder).is_dir():
                leftovers += [e for e in (self._own / folder).iterdir() if e.name not in kept]
        if leftovers and (self.path / ".zmetadata").exists():
            leftovers.append(self.path / ".zmetadata")
        with self._writing():
            for entry in leftovers:
                _remove(entry)

    # ------------------------------------------------------------------- groups
    def finished(self) -> list[str]:
        """Names of the groups with a marker, in order."""
        return [name for name in self.names if self._marker(name) is not None]

    def _marker(self, name: str) -> dict[str, Any] | None:
        """The marker of a finished group that belongs to this manifest."""
        try:
            marker = json.loads((self._own / "done" / f"{name}.json").read_text("utf-8"))
            belongs = marker["manifest"] == self._identity and isinstance(marker["files"], dict)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return marker if belongs and (self.path / name).is_dir() else None

    def read(self, name: str) -> Any:
        """The xarray.Dataset of a finished group; if damaged, None, and it counts as unfinished.

        Damage means a wrong checksum, or a disk that cannot be read. Every other error is raised
        and the group remains, since it may be intact.
        """
        marker = self._marker(name)
        if marker is None:
            return None
        try:
            if _checksums(self.path / name) != marker["files"]:
                raise ValueError("its files have changed")
            return read_group(self.path / name)
        except Exception as error:
            if not is_damage(error):
                raise
            warn_caller(
                f"{name} in the store {self.path} is damaged ({error}); it is recomputed",
                RuntimeWarning,
            )
            with self._writing():
                self._discard(name)
            return None

    def write(self, name: str, dataset: Any) -> None:
        """Add a finished group."""
        aside = self._own / "writing" / name
        with self._writing():
            try:
                _remove(aside)
                aside.parent.mkdir(exist_ok=True)
                dataset.to_zarr(aside, mode="w", consolidated=True, **_zarr_format())
                marker = {"manifest": self._identity, "files": _checksums(aside)}
                self._discard(name)
                os.rename(aside, self.path / name)
                (self._own / "done").mkdir(exist_ok=True)
                self._write_json(self._own / "done" / f"{name}.json", marker)
            except BaseException:
                with contextlib.suppress(OSError):
                    _remove(aside)
                raise

    def consolidate(self) -> None:
        """Metadata of all groups in one file, so that the whole store opens at once.

        A convenience for other readers; skipped if it cannot be written.
        """
        if (self.path / ".zmetadata").exists():
            return
        metadata: dict[str, Any] = {".zgroup": {"zarr_format": 2}}
        for name in self.names:
            of_group = json.loads((self.path / name / ".zmetadata").read_text("utf-8"))
            metadata |= {f"{name}/{key}": value for key, value in of_group["metadata"].items()}
        with contextlib.suppress(OSError):
            self._write_json(
                self.path / ".zmetadata", {"metadata": metadata, "zarr_consolidated_format": 1}
            )

    def _discard(self, name: str) -> None:
        """Remove a group, its marker first."""
        _remove(self._own / "done" / f"{name}.json")
        _remove(self.path / name)
        _remove(self.path / ".zmetadata")

    # ------------------------------------------------------------------ writing
    def _write_json(self, path: Path, value: Any, *, sync: bool = False) -> None:
        """Write a JSON file atomically."""
        (self._own / "writing").mkdir(exist_ok=True)
        with replacing(path, self._own / "writing" / f"{path.name}.tmp", sync=sync) as aside:
            aside.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Translate an OSError: what could not be written, what remains and what to do."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            number = error.errno or 0
            kept, again = "", ""
            if hasattr(self, "_identity"):
                kept = f"; it holds {len(self.finished())} of {len(self.names)} kernels"
                again = ": it continues where it stopped"
            raise _plain(
                OSError,
                number,
                f"cannot write the store {self.path}: {error.strerror or error}{kept}. "
                f"{_REMEDIES.get(number, 'Remove the cause')} (or give another store), and run the "
                f"same sweep again{again}",
            ) from error


def read_manifest(path: Any) -> tuple[dict[str, Any], list[str]]:
    """Manifest of a store and the names of its finished groups; for reading without a lock.

    Raises
    ------
    FileNotFoundError, ValueError
        The store does not exist, is damaged, or has another format.
    """
    path = Path(path)
    if not _manifest(path).exists():
        raise FileNotFoundError(f"{path} is not a store of a sweep: it has no .sweep/manifest.json")
    manifest = _stored_manifest(path)
    if manifest["format"] != _FORMAT:
        raise ValueError(
            f"the store {path} has the format {manifest['format']!r}, but this version reads "
            f"{_FORMAT!r}: install the version that wrote it ({manifest.get('version')})"
        )
    reader = object.__new__(Store)
    reader.path, reader._own = path, path / ".sweep"
    reader._identity = _digest(json.dumps(manifest, sort_keys=True).encode())
    names = sorted(e.name for e in path.iterdir() if _GROUP.fullmatch(e.name))
    finished = []
    for name in names:
        marker = reader._marker(name)
        if marker is None:
            continue
        if _checksums(path / name) != marker["files"]:
            raise ValueError(
                f"{name} in the store {path} is damaged: run the sweep again with this store"
            )
        finished.append(name)
    return manifest, finished


def read_group(path: Path) -> Any:
    """The xarray.Dataset of a group, in memory."""
    import xarray

    with xarray.open_zarr(path, chunks=None, consolidated=True) as dataset:
        return dataset.load()


def _refuse_strangers(path: Path) -> None:
    """ValueError if a path holds anything other than a sweep store or an empty directory."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a store is a directory: give another path")
    if path.is_dir() and not _manifest(path).exists():
        others = sorted({entry.name for entry in path.iterdir()} - {".sweep"})
        if others:
            raise ValueError(
                f"{path} is not a store of a sweep (it holds {', '.join(others[:3])}): give a "
                "path that does not exist or an empty directory"
            )


def _manifest(path: Path) -> Path:
    return path / ".sweep" / "manifest.json"


def _stored_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_manifest(path).read_text("utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(
            f"{_manifest(path)} is damaged, so it is unknown what the store was made for; remove "
            "the store, or give another one"
        )
    return manifest


def _checksums(folder: Path) -> dict[str, list[Any]]:
    """Size and checksum of every file below a folder."""
    return {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _digest(file.read_bytes())]
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _plain(kind: type[OSError], number: int, message: str) -> OSError:
    """An OSError whose text is only the message."""
    error = kind(message)
    error.errno = number
    return error


def _zarr_format() -> dict[str, int]:
    """The only format that both zarr-python 2 and 3 support."""
    import zarr

    return {"zarr_format": 2} if int(zarr.__version__.split(".")[0]) >= 3 else {}
