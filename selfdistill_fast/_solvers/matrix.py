"""The kernel matrix that a solver factorises: its checks, its norm, and its centring.

Solvers that never store K use its diagonal, which is also computed here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selfdistill_fast._validation import largest
from selfdistill_fast.kernels import Kernel

__all__ = [
    "centre",
    "check_diagonal",
    "check_symmetric",
    "check_weighted",
    "overflow",
    "rounding",
    "scale_of",
    "underflow",
]

#: rows of K processed by one step of a blocked O(n²) pass
_BLOCK = 256


def rounding(scale: float, dtype: Any) -> float:
    """Size of an eigenvalue that may be rounding alone, for a matrix K_w of norm ``scale``.

    The single rule for rounding is 10 ε ‖K_w‖ of the matrix *before* centring, because the
    rounding of its entries, and of the eigenvalues after centring, is relative to that norm.

    * An eigenvalue below −√n times this shows that K is no kernel matrix; a negative one of
      smaller size is set to 0.
    * An eigenvalue up to this size is not known. Where λ is below it too, solvers with
      eigenvalues set it to 0; the landmark model raises it to this value.
    * λ below 10 times this (in float64 also n/10 times) causes a warning: the relative error may
      reach 100 ε ‖K_w‖/λ.
    """
    return 10.0 * float(np.finfo(dtype).eps) * scale


def check_diagonal(diagonal: Any, X: Any, kernel: Kernel, dtype: Any) -> None:
    """ValueError if K over- or underflows ``dtype``, judged by its diagonal.

    Parameters
    ----------
    diagonal : (n,) κ(x, x), in any precision
    X : (n, d) the rows, or None if κ(x, x) may be 0 for non-zero rows
    kernel : Kernel
    dtype : float32 or float64
    """
    info, size = np.finfo(dtype), largest(abs(diagonal))
    if not size * len(diagonal) <= float(info.max):  # a bound of the largest eigenvalue
        raise overflow(kernel, dtype)
    nothing = size == 0.0 and not (
        X is not None and kernel.definite and largest(abs(X)) > 0.0  # definite: κ(x, x) > 0
    )
    if size < float(info.tiny) and not nothing:
        raise underflow(kernel, dtype)


def overflow(kernel: Kernel, dtype: Any) -> ValueError:
    """The error for a kernel that overflows."""
    return ValueError(f"{kernel!r} overflows {dtype} on these rows: scale X down{_wider(dtype)}")


def underflow(kernel: Kernel, dtype: Any) -> ValueError:
    """The error for a kernel that underflows."""
    return ValueError(f"{kernel!r} underflows {dtype} on these rows: scale X up{_wider(dtype)}")


def _wider(dtype: Any) -> str:
    return ", or use float64" if dtype == np.float32 else ""


def check_weighted(size: float, dtype: Any) -> None:
    """ValueError if weights, or the resulting norm of K_w, over- or underflow."""
    info = np.finfo(dtype)
    if not float(info.tiny) <= size <= float(info.max) and size != 0.0:
        flow = "underflow" if size < 1.0 else "overflow"
        raise ValueError(
            f"sample_weight times the kernel leads to numbers that {flow} {dtype}: multiply all "
            "weights and lam by the same factor, which does not change the model"
        )


def check_symmetric(K: Any, xp: Any) -> None:
    """ValueError unless K equals its transpose up to round-off."""
    blocks = range(0, K.shape[0], _BLOCK)
    scale = max((float(abs(K[start : start + _BLOCK]).max()) for start in blocks), default=0.0)
    tolerance = xp.finfo(K.dtype).eps ** (2 / 3) * scale
    for start in blocks:
        rows = slice(start, start + _BLOCK)
        gap = float(abs(K[rows] - K[:, rows].T).max())
        if gap > tolerance:
            raise ValueError(
                f"K is not symmetric: |K - K^T| reaches {gap:g} where max |K| is {scale:g}; "
                "a kernel is a symmetric function"
            )


def scale_of(K: Any, xp: Any) -> float:
    """Upper bound of the norm of symmetric K: Frobenius norm or row sums, the smaller one."""
    squares, rows = 0.0, 0.0
    for start in range(0, K.shape[0], _BLOCK // 4):
        block = abs(K[start : start + _BLOCK // 4])
        rows = max(rows, float(block.sum(1).max()))
        size = float(block.max())
        if size > 0.0:  # scaled, so that no square over- or underflows
            block /= size
            squares = math.hypot(squares, float(xp.einsum("ij,ij->", block, block)) ** 0.5 * size)
    return min(squares, rows)


def centre(K: Any, q: Any, shift: float, xp: Any) -> tuple[Any, float]:
    """K ← H K H + s q qᵀ in place, with s = shift · trace/n (or shift, if the trace is 0).

    With m = Kq: H K H + s qqᵀ = K − q mᵀ − (m − (qᵀm + s) q) qᵀ. Returns m (float64) and s.
    For a positive shift the trace is that of K. For a negative one it is that of H K H, which may
    be far smaller, but no less than √ε times that of K. So q mixes with the other eigenvectors by
    √ε at most, which leaves an error of order ε once they are made orthogonal to q.
    """
    n = K.shape[0]
    qt = q.astype(K.dtype)
    m = K @ qt
    qm = float(q @ m.astype("float64"))
    trace = float(xp.trace(K, dtype="float64"))
    if shift < 0.0:
        trace = max(trace - qm, float(xp.finfo(K.dtype).eps) ** 0.5 * trace)
    s = shift * (trace / n if trace > 0.0 else 1.0)
    left = (m.astype("float64") - (qm + s) * q).astype(K.dtype)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        K[rows] -= qt[rows, None] * m[None, :]
        K[rows] -= left[rows, None] * qt[None, :]
    return m.astype("float64"), s
