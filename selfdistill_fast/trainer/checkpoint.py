"""Files of a fit that survive a kill, a crash and a full disk.

A file is written next to its final location, flushed to the disk and renamed over the old one, so
there is always one complete file. Files hold only tensors, numbers, strings, lists and
dictionaries, and are read with ``weights_only=True``: nothing in them is executed.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from selfdistill_fast._files import differences, is_damage, replacing

__all__ = ["claim", "read", "write", "write_json"]


def _replace(path: Path, save: Callable[[BinaryIO], Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # one writer per run (process 0): a fixed name, so that leftovers of a kill are overwritten
        with replacing(path, path.with_name(path.name + ".tmp")) as aside, aside.open("wb") as file:
            save(file)
    except (OSError, RuntimeError) as error:  # torch's writer wraps a failed write
        kept = "the one before is kept" if path.exists() else "there was none before"
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"could not write ({getattr(error, 'strerror', None) or error}); {kept}. "
            "Make room and run the same command again: it continues from there",
            str(path),
        ) from error


def write(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically.

    Raises
    ------
    OSError
        For example, the disk is full; an existing file at ``path`` is unchanged.
    """
    _replace(path, lambda file: torch.save(content, file))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    _replace(path, lambda file: file.write(text.encode()))


def read(path: Path) -> dict[str, Any] | None:
    """The content written by :func:`write`, on the CPU; None if there is no file.

    Raises
    ------
    ValueError
        The file is damaged or something else.
    MemoryError, RuntimeError, OSError
        Its content does not fit in memory, or the system cannot read it.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not is_damage(error):
            raise
        raise ValueError(
            f"{path} is damaged or no checkpoint ({type(error).__name__}); delete it to begin this "
            "fit anew"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint of this package")
    return content


def claim(directory: Path, settings: dict[str, Any], name: str = "settings.json") -> None:
    """Mark a directory as belonging to these settings; ValueError if it has others.

    Parameters
    ----------
    directory : Path
    settings : dict of JSON values
        Everything that determines the result.
    name : str
        File that holds them.

    Raises
    ------
    ValueError
        The directory was started with other settings; the message names them.
    """
    path = directory / name
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise ValueError(f"{path} is damaged; delete {directory} to begin anew")
        changes = differences(before, settings)
        if changes:
            raise ValueError(
                f"{directory} holds a run of another configuration: {'; '.join(changes)}. "
                "Use another directory, or the same settings to continue it"
            )
        return
    write_json(path, settings)
