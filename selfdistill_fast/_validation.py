"""Checks of arguments, and warnings, used by every module; imports nothing from the package.

An error says what was wrong, what was expected and what to do.
"""

from __future__ import annotations

import math
import numbers
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from selfdistill_fast._backend import Array, Backend

__all__ = [
    "check_coefficients",
    "check_lam",
    "check_lam_steps",
    "check_memory",
    "check_n_steps",
    "check_sample_weight",
    "check_targets",
    "check_tol",
    "exact_text",
    "is_tensor",
    "largest",
    "plain",
    "to_host",
    "warn_caller",
]

#: location of this package's own files
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line outside this package that led here."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    warnings.warn(message, category, stacklevel=level)


def exact_text(value: float) -> str:
    """A number as text that reads back as the same number; 12 digits if they suffice.

    Examples
    --------
    >>> exact_text(0.1), exact_text(2.0), exact_text(1 / 3)
    ('0.1', '2', '0.3333333333333333')
    """
    text = f"{value:.12g}"
    return text if float(text) == value else repr(float(value))


def is_tensor(a: Any) -> bool:
    """Whether ``a`` is a torch tensor; torch is not imported for this."""
    return hasattr(a, "detach") and hasattr(a, "layout")


def plain(a: Any, name: str = "array") -> Any:
    """``a`` unchanged, except that a torch tensor on the host (or a list) becomes a NumPy array.

    Tensors are detached: no gradient flows through this library. bfloat16 and float8 become
    float32, which holds their values exactly.

    Raises
    ------
    TypeError
        A complex, sparse, quantised or nested tensor, or one without numbers.
    """
    if isinstance(a, (list, tuple)) and any(map(is_tensor, a)):
        return [plain(part, name) for part in a]
    if not is_tensor(a):
        return a
    if a.is_nested:
        raise TypeError(f"{name} is a nested tensor: pass one dense tensor")
    if a.is_quantized:
        raise TypeError(f"{name} is quantised: pass {name}.dequantize()")
    if str(a.layout) != "torch.strided":
        raise TypeError(
            f"{name} is sparse, or in another layout ({a.layout}); this library works on dense "
            f"arrays: pass {name}.to_dense()"
        )
    if a.is_complex():
        raise TypeError(f"{name} must hold real numbers, got dtype {a.dtype}")
    if a.device.type == "meta":
        raise TypeError(f"{name} is on the meta device and holds no numbers: pass real data")
    if a.device.type not in ("cpu", "cuda"):
        raise TypeError(f"{name} is on device {a.device}: pass {name}.cpu()")
    a = a.detach().resolve_neg()
    wide = ("torch.float16", "torch.float32", "torch.float64")
    a = a.float() if a.is_floating_point() and str(a.dtype) not in wide else a
    return a.numpy() if a.device.type == "cpu" else a


def to_host(a: Any, name: str = "array") -> Any:
    """``a`` as a NumPy array if it is on a device: one copy, and no later synchronisation."""
    a = plain(a, name)
    if is_tensor(a):
        return a.cpu().numpy()
    if isinstance(a, (list, tuple)):
        return [to_host(part, name) for part in a]
    # of CuPy's kind; a pandas.Series has a method get as well
    return a.get() if hasattr(a, "get") and hasattr(a, "__dlpack_device__") else a


def largest(a: Array) -> float:
    """The largest entry; 0 for an empty array."""
    return float(a.max()) if a.size else 0.0


def check_n_steps(n_steps: Any, name: str = "n_steps") -> int:
    """``n_steps`` as an int >= 1; TypeError or ValueError otherwise."""
    if isinstance(n_steps, (bool, np.bool_)) or not isinstance(n_steps, numbers.Real):
        raise TypeError(f"{name} must be an integer >= 1, got {n_steps!r}")
    value = float(n_steps)
    if not (math.isfinite(value) and value % 1 == 0 and value >= 1):
        hint = " (steps count from 1)" if "step" in name else ""
        raise ValueError(f"{name} must be an integer >= 1{hint}, got {n_steps!r}")
    return int(value)


def check_lam(lam: Any, *, batch: bool, dtype: DTypeLike | None = None) -> Array:
    """``lam`` as float64: a 0-d value, or with ``batch`` possibly a 1-D array (L,).

    Raises
    ------
    TypeError, ValueError
        Not a number, not finite, not > 0, or an array where one value is expected; λ or 1/λ is
        not a normal number of ``dtype``, if that is given.
    """
    lam = plain(lam, "lam")
    try:
        value = np.asarray(lam)
        if value.dtype.kind not in "fiu":
            raise TypeError
        value = value.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"lam must be a real number, got {lam!r}") from None
    if value.size == 0:
        raise ValueError("lam is empty: give at least one value")
    if value.ndim > (1 if batch else 0):
        raise ValueError(
            f"lam must be a scalar{' or one-dimensional (a batch of values)' if batch else ''}, "
            f"got shape {value.shape}"
            + ("" if batch else "; a 1-D lam is a batch of λ values, never one for each step")
        )
    if not (np.isfinite(value) & (value > 0)).all():
        raise ValueError(f"lam must be finite and > 0 (the ridge λ of (K + λI)⁻¹), got {lam!r}")
    tiny = 0.0 if dtype is None else float(np.finfo(dtype).tiny)
    bad = value[(value < tiny) | (value * tiny > 1.0)]
    if bad.size:
        raise ValueError(
            f"lam={bad[0]:g} is out of range in {dtype}: lam and 1/lam must be at least "
            f"{tiny:.2g}. Multiply the kernel and lam by one factor, which changes no prediction"
            + (", or use float64" if dtype == np.float32 else "")
        )
    return value


def check_lam_steps(lam_steps: Any, n_steps: int) -> Array:
    """One λ for each of the steps 1..T as float64 (T,); TypeError or ValueError otherwise."""
    value = check_lam(lam_steps, batch=True)
    if value.shape != (n_steps,):
        raise ValueError(
            f"lam_steps must hold {n_steps} values, one for each of the steps 1..{n_steps}; "
            f"got shape {value.shape}"
        )
    return value


def check_tol(tol: Any) -> float:
    """``tol`` as a float; ValueError unless it is between 0 and 1."""
    if isinstance(tol, bool) or not isinstance(tol, numbers.Real) or not 0.0 < float(tol) < 1.0:
        raise ValueError(f"tol must be a number between 0 and 1, got {tol!r}")
    return float(tol)


def check_targets(be: Backend, y: Any, n: int, dtype: DTypeLike, name: str = "y") -> Array:
    """Targets as a native (n,) or (n, p) array with p > 0; ValueError if they do not fit."""
    y = be.asarray(y, name, ndim=(1, 2), dtype=dtype)
    if y.shape[0] != n:
        raise ValueError(f"X has {n} rows, but {name} has {y.shape[0]}")
    if y.ndim == 2 and y.shape[1] == 0:
        raise ValueError(f"{name} has no targets: shape {y.shape}")
    return y


def check_sample_weight(
    be: Backend, sample_weight: Any, n: int, name: str = "sample_weight"
) -> Array | None:
    """Weights as a native float64 (n,) array, or None; ValueError if they are invalid."""
    if sample_weight is None:
        return None
    w = be.asarray(sample_weight, name, ndim=(0, 1), dtype=np.float64)
    if w.ndim == 0:
        w = be.xp.full(n, float(w))
    if w.shape[0] != n:
        raise ValueError(f"{name} has {w.shape[0]} entries for {n} rows")
    if bool((w < 0).any()):
        raise ValueError(f"{name} must be >= 0, got {float(w.min())}")
    if not bool((w > 0).any()):
        raise ValueError(f"{name} is zero for every row: nothing is left to fit")
    return w


def check_coefficients(a: Array, terms: int = 1) -> Array:
    """``a``, coordinates or dual coefficients; ValueError if sums of ``terms`` of them overflow."""
    if not largest(abs(a)) * terms <= float(np.finfo(a.dtype).max):
        raise ValueError(
            f"coefficients of size y/lam overflow {a.dtype}: scale y down, or the kernel and lam up"
            + (", or use float64" if a.dtype == np.float32 else "")
        )
    return a


def check_memory(
    be: Backend, needed: int, what: str, limit: int | None = None, hint: str = ""
) -> None:
    """MemoryError before an allocation of ``needed`` bytes that cannot succeed.

    ``limit`` None means the memory that the backend has available.
    """
    available = be.available_memory() if limit is None else limit
    if needed > available:
        raise MemoryError(
            f"{what} needs {needed:,} bytes ({needed / 2**30:.2f} GiB), but only "
            f"{available:,} bytes ({available / 2**30:.2f} GiB) "
            f"{'are available' if limit is None else 'are allowed'}; "
            + (hint or "use gram_matmul, which never forms K, float32, or blocks of rows")
        )
