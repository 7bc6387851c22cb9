"""Targets and predictions of the pure steps, as columns in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from selfdistill_fast._validation import is_tensor, plain

__all__ = ["check_columns", "double", "round_off_of"]


def check_columns(y: Any, F: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """y (m, p), F (T, m, p) and weights (m, 1) or None, in double, shapes checked."""
    y, F = double(y, "y"), double(F, "F")
    if F.ndim != y.ndim + 1 or tuple(F.shape[1:]) != tuple(y.shape):
        raise ValueError(
            f"predictions of shape {tuple(F.shape)} do not match targets of shape "
            f"{tuple(y.shape)}; expected (T, *{tuple(y.shape)})"
        )
    if y.ndim not in (1, 2) or y.shape[0] == 0:
        raise ValueError(f"targets must have shape (m,) or (m, p) with m > 0, got {tuple(y.shape)}")
    if F.shape[0] == 0:
        raise ValueError(
            f"there are no predictions: shape {tuple(F.shape)}; give at least one step"
        )
    m = y.shape[0]
    if sample_weight is not None:
        sample_weight = double(sample_weight, "sample_weight")
        if tuple(sample_weight.shape) != (m,):
            raise ValueError(
                f"sample_weight must have shape ({m},), got {tuple(sample_weight.shape)}"
            )
        if not bool((sample_weight >= 0).all()) or not bool((sample_weight > 0).any()):
            raise ValueError("sample_weight must be non-negative and not all zero")
        sample_weight = sample_weight.reshape(m, 1)
    return y.reshape(m, -1), F.reshape(F.shape[0], m, -1), sample_weight


def double(a: Any, name: str = "array") -> Any:
    """``a`` in double precision, in its own array namespace."""
    a = plain(a, name)
    if is_tensor(a):
        return a.double()
    if not hasattr(a, "astype"):
        a = np.asarray(a)
    if "complex" in str(a.dtype):
        raise TypeError(f"{name} must hold real numbers, got dtype {a.dtype}")
    return a.astype("float64", copy=False)


def round_off_of(*arrays: Any) -> float:
    """The rounding error of differences of predictions, relative to the largest value.

    It uses the eps of the coarsest array: summing float32 predictions in double does not make
    them more accurate.
    """
    single = any("float32" in str(a.dtype) for a in arrays if hasattr(a, "dtype"))
    return 32.0 * float(np.finfo(np.float32 if single else np.float64).eps)
