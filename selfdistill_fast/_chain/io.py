"""One ``.npz`` file for a saved chain: a JSON header and arrays; no pickle, nothing is executed."""

from __future__ import annotations

import json
import math
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast._files import is_damage, replacing
from selfdistill_fast._validation import check_lam, check_lam_steps
from selfdistill_fast.kernels import kernel_from_dict

__all__ = ["read", "write"]

_FORMAT = "selfdistill_fast.DistillationPath"
_VERSION = 1


class _Refused(Exception):
    """The file is not a saved model; the message is for the user."""


def write(path: Any, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write a header and arrays; the file appears under its name only once it is complete.

    Parameters
    ----------
    path : str or path-like
    header : dict
        ``kernel`` (a Kernel), ``lam``, ``lam_steps``, ``one_target``, ``limit`` (why there is
        none, or None), ``selection``, ``default_step`` and ``metadata``, as :func:`read` returns
        them.
    arrays : dict of ndarray
        ``alphas`` and ``step_weights`` (float64), ``duals``, ``constants``; and, if they exist,
        ``shrinkage``, ``X``, ``limit_dual`` and ``limit_constant``.

    Raises
    ------
    TypeError
        The kernel is a function, or metadata is not JSON.
    OSError
        The file cannot be written.
    """
    lam_steps, selection = header["lam_steps"], header["selection"]
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "package_version": _package_version(),
        **header,
        "kernel": header["kernel"].to_dict(),
        "lam_steps": None if lam_steps is None else lam_steps.tolist(),
        "selection": None if selection is None else _listed(selection),
    }
    try:
        text = json.dumps(described, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must be JSON values: {error}") from None
    with replacing(Path(path)) as aside, aside.open("wb") as file:
        np.savez(file, header=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)


def read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file written by :func:`write`; checked for consistency.

    Raises
    ------
    FileNotFoundError
    ValueError
        The file is corrupt, truncated, of another kind, or of a later version.
    MemoryError, OSError
        The model does not fit in memory, or the system cannot read the file.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            header, arrays = _contents(file)
            return _checked(header, arrays), arrays
        except _Refused as error:
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:
            if not is_damage(error):
                raise
            raise ValueError(
                f"{path} is damaged and cannot be read as a saved model "
                f"({type(error).__name__}: {error}); save it again from the fitted model"
            ) from error


def _contents(file: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays, unchecked, of an open file of this format and version."""
    if not zipfile.is_zipfile(file):
        raise _Refused("not a saved model (not an .npz file, or cut short)")
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise _Refused(f"damaged: the checksum of {damaged} is wrong")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        if "header" not in archive:
            raise _Refused("not a saved model: an .npz file of something else")
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(arrays.pop("header").tobytes().decode())
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _Refused("not a saved model: its header names another format")
    if header["version"] != _VERSION:
        raise _Refused(
            f"written in format version {header['version']} by selfdistill_fast "
            f"{header.get('package_version')}; this version reads {_VERSION}. "
            "Install a matching version"
        )
    return header, arrays


def _checked(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The values of a header, after checking that its arrays have the right shapes and types."""
    T, n, p = arrays["duals"].shape
    shapes = {name: array.shape for name, array in arrays.items()}
    targets = shapes["alphas"][1:]
    expected: dict[str, Any] = {
        "alphas": (T, *targets),
        "step_weights": (T, T, *targets),
        "constants": (T, p),
        "duals": (T, n, p),
    }
    if "shrinkage" in arrays:
        expected["shrinkage"] = (T, shapes["shrinkage"][1], *targets)
    if "X" in arrays:
        expected["X"] = (n, shapes["X"][1])
    if header["limit"] is None:
        expected |= {"limit_dual": (n, p), "limit_constant": (p,)}
    if shapes != expected or targets not in ((), (p,)):
        raise _Refused(f"damaged: its arrays do not match each other ({shapes})")
    kernel = kernel_from_dict(header["kernel"])
    if ("X" in arrays) == (kernel.name == "precomputed"):
        raise _Refused("damaged: training rows and kernel do not match")
    dtype = arrays["duals"].dtype
    doubles = (arrays["alphas"].dtype, arrays["step_weights"].dtype)
    if dtype not in (np.float32, np.float64) or set(doubles) != {np.dtype(np.float64)}:
        raise _Refused(f"damaged: coefficients of dtype {dtype}, weights of {doubles}")
    strange = sorted(name for name, array in arrays.items() if array.dtype.kind != "f")
    if strange:
        raise _Refused(f"damaged: {', '.join(strange)} must hold floating-point numbers")
    lam, lam_steps, selection = header["lam"], header["lam_steps"], header["selection"]
    if (lam is None) == (lam_steps is None):
        raise _Refused("damaged: exactly one of lam and lam_steps must be present")
    return {
        "kernel": kernel,
        "lam": None if lam is None else float(check_lam(lam, batch=False)),
        "lam_steps": None if lam_steps is None else check_lam_steps(lam_steps, T),
        "one_target": bool(header["one_target"]),
        "limit": header["limit"],
        "selection": None if selection is None else _arrays(selection),
        "default_step": _default_step(header.get("default_step"), T),
        "metadata": header["metadata"],
    }


def _default_step(step: Any, T: int) -> int:
    """The step of a header; the last one, where an earlier version has written the file."""
    if step is None:
        return T
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= T:
        raise _Refused(f"damaged: default_step {step!r} of {T} steps")
    return step


def _listed(selection: dict[str, Any]) -> dict[str, Any]:
    """Arrays as lists, infinite condition numbers as None: strict JSON."""
    return {
        name: [x if math.isfinite(x) else None for x in value.tolist()]
        if isinstance(value, np.ndarray)
        else value
        for name, value in selection.items()
    }


def _arrays(selection: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_listed`."""
    return {
        name: np.array([math.inf if x is None else x for x in value])
        if isinstance(value, list)
        else value
        for name, value in selection.items()
    }


def _package_version() -> str:
    try:
        return version("selfdistill_fast")
    except PackageNotFoundError:
        return "unknown"
