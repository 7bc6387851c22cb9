"""From a caller's array to a native one: checks, conversion, and the device of an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from selfdistill_fast._backend.base import Array
from selfdistill_fast._validation import plain

__all__ = ["check_finite", "check_ndim", "device_number", "host_array", "real_dtype"]


def device_number(a: Any) -> int | None:
    """Number of the CUDA device of ``a``, by DLPack's protocol; None: on the host."""
    if isinstance(a, np.ndarray) or not hasattr(a, "__dlpack_device__"):
        return None
    try:
        kind, number = a.__dlpack_device__()
    except Exception:  # some arrays refuse dtypes that DLPack does not support
        return None
    return int(number) if int(kind) in (2, 13) else None  # kDLCUDA, kDLCUDAManaged


def host_array(
    a: Any,
    name: str,
    *,
    ndim: int | Sequence[int] | None,
    dtype: DTypeLike | None,
    finite: bool,
) -> np.ndarray:
    """``a``, which is on the host, as a NumPy array; see :meth:`Backend.asarray`."""
    if hasattr(a, "toarray") and hasattr(a, "nnz"):
        raise TypeError(
            f"{name} is sparse; this library works on dense arrays: pass {name}.toarray()"
        )
    if np.ma.is_masked(a):
        raise TypeError(f"{name} has masked entries; fill or drop them first")
    a = plain(a, name)
    try:
        array = np.asarray(a)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array: {error}") from None
    except (TypeError, RuntimeError) as error:  # from the object's own conversion
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must hold real numbers: {error}") from None
    chosen = real_dtype(array, name)
    check_ndim(array, name, ndim)
    with np.errstate(over="ignore"):  # overflow in float32 is rejected as infinity below
        array = np.asarray(array, dtype=chosen if dtype is None else dtype, order="C")
    if finite:
        check_finite(np, array, name)
    return array


def real_dtype(array: Array, name: str) -> type[np.floating]:
    """The dtype, float32 or float64, to which an array is converted."""
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return np.float32 if single else np.float64


def check_ndim(array: Array, name: str, ndim: int | Sequence[int] | None) -> None:
    """Reject an array with another number of dimensions."""
    if ndim is None:
        return
    allowed = (ndim,) if isinstance(ndim, int) else tuple(ndim)
    if array.ndim not in allowed:
        raise ValueError(
            f"{name} must have {' or '.join(map(str, allowed))} dimension(s), "
            f"got shape {array.shape}"
            + ("; reshape a single feature to (n, 1)" if allowed == (2,) else "")
        )


def check_finite(xp: Any, array: Array, name: str) -> None:
    """Reject NaN and infinity; the message gives the first index."""
    if not bool(xp.isfinite(array).all()):
        where = tuple(int(i) for i in xp.argwhere(~xp.isfinite(array))[0])
        raise ValueError(
            f"{name} contains NaN or infinity (first at index {where}); drop or impute such rows"
        )
