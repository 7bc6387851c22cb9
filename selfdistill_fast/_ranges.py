"""Rows and kernels whose squares and products would leave the range of their dtype.

The loops of a backend compute Σ (x − z)², Σ |x − z| or Σ x z in the dtype of the rows. In float32
the square of 1e20 overflows and that of 1e-20 underflows, even where the kernel's value is
ordinary; in float64 the same happens at 1e155 and 1e-155. Where this can happen, the rows are
first multiplied by powers of two, which changes none of their digits:

*   for distance kernels, by one power for all rows, chosen so that the kernel's length scale
    becomes 1. A distance that then overflows is very large (κ = 0), and one that underflows is
    practically zero (κ = 1);
*   for kernels of inner products and angles, by one power for each row, so that its largest entry
    is between 1/2 and 1. The exponents are then applied to the entries of K.

Ordinary rows and parameters are not scaled; :func:`usual` tells which these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from selfdistill_fast.kernels import Kernel

if TYPE_CHECKING:
    from selfdistill_fast._backend import Array, Backend

__all__ = ["by_rows", "diagonal", "in_units", "usual"]

#: rows of K whose exponents are applied at a time
_BLOCK = 256


def usual(X: Array, Z: Array, kernel: Kernel) -> bool:
    """Whether a backend's loops can use rows X and Z (None: X) without scaling."""
    info = np.finfo(X.dtype)
    if kernel.unit_diagonal:
        return abs(kernel.log2_rate) <= info.maxexp // 4
    largest = _largest(X)
    both = largest, largest if Z is None else _largest(Z)
    if 0.0 in both:
        return True
    x, z = (int(e) for e in np.frexp(both)[1])  # |X| < 2^x, |Z| < 2^z
    terms = X.shape[1].bit_length()
    if not info.minexp + info.nmant + terms + 2 <= x + z < info.maxexp - terms:
        return False
    if kernel.pair == "angle":  # norms are computed
        return bool(max(abs(x), abs(z)) < info.maxexp // 2 - terms)
    gamma = kernel.c_spec[1]  # 0: the kernel has none
    return gamma == 0.0 or float(info.tiny) <= gamma <= float(info.max)


def in_units(X: Array, Z: Array, kernel: Kernel, xp: Any) -> tuple[Array, Array, Kernel]:
    """Rows in units of the kernel's length scale, and the kernel for them; for distance kernels.

    Raises
    ------
    ValueError
        The rows are so large in these units that no power of two fits both.
    """
    info = np.finfo(X.dtype)
    e, largest = round(kernel.log2_rate), max(_largest(X), 0.0 if Z is None else _largest(Z))
    highest = info.maxexp - 3 - int(np.frexp(largest)[1])  # no difference overflows
    if e - highest > info.maxexp // 4:
        raise ValueError(
            f"{kernel!r} decays within distances of {2.0**-e:.0e}, but features reach "
            f"{largest:.0e}: {X.dtype} cannot hold the squares of both. Scale all features to one "
            "size, or choose a kernel with a length scale of that size"
            + (", or use float64" if X.dtype == np.float32 else "")
        )
    e = min(e, highest)
    return xp.ldexp(X, e), None if Z is None else xp.ldexp(Z, e), kernel.rescaled(e)


def by_rows(be: Backend, X: Array, Z: Array, kernel: Kernel, out: Array = None) -> Array:
    """K(X, Z) with a power of two for each row; for kernels of inner products and angles.

    Entries that the dtype cannot hold are infinite, or subnormal or 0.
    """
    X, x = _normalised(be, X)
    z = x
    if Z is not None:
        Z, z = _normalised(be, Z)
    K = be.gram(X, Z, kernel.core, out=out)
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, K.shape[0], _BLOCK):
            rows = slice(start, start + _BLOCK)
            K[rows] = kernel.of_core(be.xp, K[rows], x[rows, None] + z[None, :])
    return K


def diagonal(be: Backend, X: Array, kernel: Kernel) -> Array:
    """κ(x, x) of every row, float64, for kernels with a pair quantity."""
    X = X.astype("float64")
    with np.errstate(over="ignore", under="ignore"):
        if usual(X, None, kernel):
            return kernel.diagonal(be.xp, (X**2).sum(1))
        if kernel.unit_diagonal:
            return be.xp.ones(X.shape[0])
        X, x = _normalised(be, X)
        return kernel.of_core(be.xp, kernel.core.diagonal(be.xp, (X**2).sum(1)), x + x)


def _largest(A: Array) -> float:
    """max |A|, 0 where A is empty."""
    return max(float(A.max()), -float(A.min())) if A.size else 0.0


def _normalised(be: Backend, A: Array) -> tuple[Array, Array]:
    """Rows with largest entries in [1/2, 1), and the exponents (n,) that were taken off."""
    xp = be.xp
    e = xp.asarray(np.frexp(be.to_numpy(abs(A).max(1)))[1].astype(np.int32))
    return xp.ldexp(A, -e[:, None]), e
