"""Gram matrices: K(X, Z), products K(X, Z) W without forming K, and sweeps over γ.

The public functions check their arguments and pass native arrays to the backend.
:func:`native_gram`, :func:`native_matmul` and the other ``native_*`` functions do the same for
arrays that are already native; the solvers use those. They keep values in range
(:mod:`selfdistill_fast._ranges`). Only they handle the two kernels that no backend computes: a
precomputed matrix and the caller's own function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from selfdistill_fast import _ranges as ranges
from selfdistill_fast._backend import Array, Backend, Half, deliver, get_backend, run_where_it_pays
from selfdistill_fast._names import KernelLike
from selfdistill_fast._validation import check_memory, plain
from selfdistill_fast.kernels import (
    RBF,
    Combined,
    Custom,
    Kernel,
    OfSamples,
    Precomputed,
    Sum,
    as_kernel,
    has_rows,
)

__all__ = ["gram", "gram_matmul", "gram_sweep"]


def gram(
    X: Any,
    Z: Any = None,
    kernel: KernelLike = RBF(1.0),  # noqa: B008 - kernels are immutable
    *,
    out: Any = None,
    backend: Any = None,
    n_threads: int | None = None,
) -> Any:
    """Gram matrix K(X, Z) with entries κ(x_i, z_j).

    Parameters
    ----------
    X : array_like of shape (n, d)
        With ``kernel="precomputed"``, the matrix K itself.
    Z : array_like of shape (m, d), optional
        None means X. K is then exactly symmetric and has the kernel's exact diagonal.
    kernel : Kernel, str or callable
        Such as ``RBF(0.1)``, a sum or product of kernels, or a name such as "rbf", with
        scikit-learn's default parameters (γ = 1/d). A callable receives (X, Z) and returns an
        (n, m) array.
    out : ndarray of shape (n, m), optional
        C-contiguous array, of the result's dtype, that receives K. Reusing it spares the
        operating system from zeroing fresh pages.
    backend : {None, "cpu", "gpu", "auto", "reference"} or a backend object, optional
        None: compute where the arrays are, on a CUDA device or on the host. "gpu" copies host
        arrays to the device and the result back; "auto" does so where it is faster.
    n_threads : int, optional
        None: as many threads as the process may use.

    Returns
    -------
    K : ndarray of shape (n, m)
        float32 if X and Z are float32 (or float16), else float64.

    Raises
    ------
    TypeError
        Sparse, complex or non-numeric input; not a kernel.
    ValueError
        Wrong shapes, NaN or infinity; a distance kernel whose length scale is too small for the
        dtype, relative to the largest feature.
    MemoryError
        K does not fit; the message gives the bytes.

    Notes
    -----
    Features and parameters may have any magnitude: where squares or products would leave the
    range of the dtype, rows are first scaled by powers of two. Entries that the dtype cannot
    represent become infinite, subnormal or 0.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, gram
    >>> gram(np.array([[0.0], [1.0]]), kernel=RBF(0.5)).round(4)
    array([[1.    , 0.6065],
           [0.6065, 1.    ]])
    """
    chosen = as_kernel(kernel, X)
    if isinstance(chosen, Custom) and not has_rows(X):
        chosen, Z = OfSamples(chosen.function, X if Z is None else Z), None
    X, Z = _features(chosen, X, Z)
    be = get_backend(backend, {"X": X, "Z": Z, "out": out}, n_threads=n_threads)

    def compute(be: Backend) -> Array:
        A, B = _rows(be, X, Z, chosen)
        shape = _shape(A, B, chosen)
        target = _native_out(be, _check_out(out, shape, A.dtype))
        if target is None and not isinstance(chosen, Precomputed):
            check_memory(be, shape[0] * shape[1] * A.dtype.itemsize, f"K of shape {shape}")
        return _delivered(be, native_gram(be, A, B, chosen, target), out)

    n, m, d = _sizes(be, X, Z, chosen)
    return run_where_it_pays(
        be, backend, n * m * (2.0 * d + 40.0), 8.0 * (n * m + (n + m) * d), compute
    )


def gram_matmul(
    X: Any,
    Z: Any,
    W: Any,
    kernel: KernelLike,
    *,
    out: Any = None,
    backend: Any = None,
    n_threads: int | None = None,
) -> Any:
    """K(X, Z) @ W without forming K, in O(n·p) memory.

    Parameters
    ----------
    X : array_like of shape (n, d)
        With ``kernel="precomputed"``, the matrix K(X, Z) itself; Z must then be None.
    Z : array_like of shape (m, d) or None
        None means X.
    W : array_like of shape (m,) or (m, p)
    kernel : Kernel or callable
    out : ndarray of shape (n,) or (n, p), optional
        C-contiguous, with the dtype of X. It must not overlap W.
    backend, n_threads
        As in :func:`gram`.

    Returns
    -------
    KW : ndarray of shape (n,) or (n, p)

    Raises
    ------
    TypeError, ValueError
        As for :func:`gram`. Also if W and Z differ in their number of rows, or if entries of K or
        their products with W overflow to infinities of both signs. Where all infinities have the
        same sign, the result is infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, gram, gram_matmul
    >>> X = np.arange(6.0).reshape(3, 2); w = np.ones(3)
    >>> bool(np.allclose(gram_matmul(X, None, w, RBF(0.1)), gram(X, kernel=RBF(0.1)) @ w))
    True
    """
    kernel = as_kernel(kernel, X)
    X, Z = _features(kernel, X, Z)
    arrays = {"X": X, "Z": Z, "W": W, "out": out}
    be = get_backend(backend, arrays, n_threads=n_threads)

    def compute(be: Backend) -> Array:
        A, B = _rows(be, X, Z, kernel)
        n, m = _shape(A, B, kernel)
        V = be.asarray(W, "W", ndim=(1, 2), dtype=A.dtype)
        if V.shape[0] != m:
            raise ValueError(f"W has {V.shape[0]} rows, but K(X, Z) has {m} columns")
        target = _native_out(be, _check_out(out, (n, *V.shape[1:]), A.dtype))
        p = V.shape[1] if V.ndim == 2 else 1
        target = None if target is None else target.reshape(n, p)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is kept, NaN is refused
            result = native_matmul(be, A, B, V.reshape(m, p), kernel, target)
        if bool(be.xp.isnan(result).any()):
            raise ValueError(
                f"K @ W is undefined in {A.dtype}: entries of {kernel!r} overflow on these rows, "
                "and infinities of both signs meet; scale X or W down"
            )
        return _delivered(be, result.reshape(n, *V.shape[1:]), out)

    n, m, d = _sizes(be, X, Z, kernel)
    p = W.shape[1] if getattr(W, "ndim", 1) == 2 else 1
    flops, nbytes = n * m * (2.0 * d + 2.0 * p + 40.0), 8.0 * ((n + m) * (d + p))
    return run_where_it_pays(be, backend, flops, nbytes, compute)


def gram_sweep(
    X: Any,
    Z: Any,
    kernels: Sequence[KernelLike],
    *,
    out: Any = None,
    backend: Any = None,
    n_threads: int | None = None,
) -> Iterator[Any]:
    """K(X, Z) for one kernel after another, for kernels that share a distance.

    Parameters
    ----------
    X : array_like of shape (n, d)
    Z : array_like of shape (m, d) or None
        None means X.
    kernels : sequence of Kernel
        All functions of the same quantity of a pair of rows: squared Euclidean distance (RBF,
        Matern), L1 distance (Laplacian), inner product (Polynomial, Linear) or angle (NTK).
    out : ndarray of shape (n, m), optional
        The buffer to which every K is written.
    backend, n_threads
        As in :func:`gram`.

    Yields
    ------
    K : ndarray of shape (n, m)
        **The same buffer each time**: copy anything that must outlive the next iteration.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for :func:`gram`; also if the kernels do not share one distance.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, gram_sweep
    >>> X = np.array([[0.0], [1.0]])
    >>> [round(float(K[0, 1]), 4) for K in gram_sweep(X, None, [RBF(0.5), RBF(1.0)])]
    [0.6065, 0.3679]
    """
    be = get_backend(backend, {"X": X, "Z": Z, "out": out}, n_threads=n_threads)
    checked = [as_kernel(kernel, X) for kernel in kernels]
    pairs = {kernel.pair for kernel in checked}
    if len(pairs) > 1 or "" in pairs or any(kernel.maps_rows for kernel in checked):
        raise ValueError(
            "kernels must share one distance of the rows as they are, got "
            + ", ".join(
                f"{type(k).__name__} ({'its own' if k.maps_rows else k.pair or 'none'})"
                for k in checked
            )
        )
    if not checked:
        return iter(())
    X, Z = _rows(be, X, Z, checked[0])
    shape = _shape(X, Z, checked[0])
    out = _check_out(out, shape, X.dtype)
    target = _native_out(be, out)
    if target is None:
        check_memory(be, shape[0] * shape[1] * X.dtype.itemsize, f"K of shape {shape}")
    if out is None and be.caller == "numpy" and be.xp is not np:
        out = np.empty(shape, dtype=X.dtype)  # one buffer on the host as well
    return (_delivered(be, K, out) for K in native_sweep(be, X, Z, checked, target))


def _features(kernel: Kernel, X: Any, Z: Any) -> tuple[Any, Any]:
    """The rows that the kernel's pair quantity is about."""
    return kernel.rows(X), None if Z is None else kernel.rows(Z, "Z")


def _sizes(be: Backend, X: Array, Z: Array, kernel: Kernel) -> tuple[int, int, int]:
    """Numbers of rows of X and Z and of their columns, for an estimate; 0 if nothing to gain."""

    def shape(a: Any, name: str) -> tuple[int, ...]:
        a = plain(a, name)
        return tuple((a if hasattr(a, "shape") else be.asarray(a, name, finite=False)).shape)

    x = shape(X, "X")
    z = x if Z is None else shape(Z, "Z")
    return (x[0], z[0], x[1]) if kernel.pair and len(x) == len(z) == 2 else (0, 0, 0)


def _native_out(be: Backend, out: Array) -> Array:
    """The array that the backend writes to: the caller's ``out`` itself if it is native."""
    if out is None or isinstance(out, be.xp.ndarray):
        return out
    return be.xp.empty(out.shape, dtype=out.dtype)


def _delivered(be: Backend, native: Array, out: Array) -> Array:
    """The result in ``out``, or as an array of the caller's kind."""
    if out is None:
        return deliver(be, native)
    if not isinstance(out, be.xp.ndarray):
        out[...] = deliver(be, native)
    return out


def native_gram(be: Backend, X: Array, Z: Array, kernel: Kernel, out: Array = None) -> Array:
    """:func:`gram` on native arrays of one dtype, whose features are scaled already."""
    if isinstance(kernel, Combined):
        parts = ((part, *_scaled(be, part, X, Z)) for part in kernel.parts)
        # the first part fills the result; the caller may still use what a function has returned
        values = (
            native_gram(be, A, B, part, out if i == 0 else None)
            for i, (part, A, B) in enumerate(parts)
        )
        return kernel.combined(
            K.copy() if isinstance(part, Custom) and K is not out else K
            for part, K in zip(kernel.parts, values, strict=True)
        )
    if isinstance(kernel, Precomputed):
        if out is None:
            return X
        out[...] = X
        return out
    if isinstance(kernel, Custom):
        other = X if Z is None else Z
        K = kernel.function(deliver(be, X), deliver(be, other))
        if np.ndim(K) < 2:
            raise ValueError(
                f"the kernel function returned {'a number' if np.ndim(K) == 0 else 'one row'} for "
                f"{X.shape[0]} and {other.shape[0]} rows: it receives all rows (X, Z) and must "
                f"return a matrix. A function of two single samples, as scikit-learn's KernelRidge "
                "takes, can be wrapped: lambda X, Z: [[function(x, z) for z in Z] for x in X]"
            )
        K = be.asarray(K, "the kernel function's result", dtype=X.dtype)
        if K.shape != (X.shape[0], other.shape[0]):
            raise ValueError(
                f"the kernel function returned shape {K.shape} for {X.shape[0]} and "
                f"{other.shape[0]} rows; it receives (X, Z) and must return "
                f"{(X.shape[0], other.shape[0])}"
            )
        if out is None:
            return K
        out[...] = K
        return out
    if ranges.usual(X, Z, kernel):
        return be.gram(X, Z, kernel, out=out)
    if kernel.unit_diagonal:
        return be.gram(*ranges.in_units(X, Z, kernel, be.xp), out=out)
    return ranges.by_rows(be, X, Z, kernel, out)


def native_matmul(
    be: Backend, X: Array, Z: Array, W: Array, kernel: Kernel, out: Array = None
) -> Array:
    """:func:`gram_matmul` on native arrays of one dtype; W (m, p)."""
    if isinstance(kernel, Sum):
        parts = ((part, *_scaled(be, part, X, Z)) for part in kernel.parts)
        result = kernel.combined(native_matmul(be, A, B, W, part) for part, A, B in parts)
        if out is None:
            return result
        out[...] = result
        return out
    if kernel.pair and ranges.usual(X, Z, kernel):
        return be.gram_matmul(X, Z, W, kernel, out=out)
    if kernel.unit_diagonal:
        X, Z, kernel = ranges.in_units(X, Z, kernel, be.xp)
        return be.gram_matmul(X, Z, W, kernel, out=out)
    if out is None:
        out = be.xp.empty((X.shape[0], W.shape[1]), dtype=W.dtype)
    other = X if Z is None else Z
    block = max(1, (1 << 22) // max(W.shape[0], 1))
    for start in range(0, X.shape[0], block):
        rows = slice(start, start + block)
        out[rows] = native_gram(be, X[rows], other, kernel) @ W
    return out


def native_diagonal(be: Backend, X: Array, kernel: Kernel) -> Array:
    """κ(x, x) of every row, float64."""
    if isinstance(kernel, Combined):
        return kernel.combined(
            native_diagonal(be, part.scaled(be.xp, X), part) for part in kernel.parts
        )
    if kernel.pair:
        return ranges.diagonal(be, X, kernel)
    block = 128
    parts = [
        be.xp.diagonal(native_gram(be, X[i : i + block], None, kernel)).astype("float64")
        for i in range(0, X.shape[0], block)
    ]
    return be.xp.concatenate(parts) if parts else be.xp.zeros(0)


def _scaled(be: Backend, kernel: Kernel, X: Array, Z: Array) -> tuple[Array, Array]:
    return kernel.scaled(be.xp, X), None if Z is None else kernel.scaled(be.xp, Z, "Z")


def native_sweep(
    be: Backend, X: Array, Z: Array, kernels: Sequence[Kernel], out: Array
) -> Iterator[Array]:
    """:func:`gram_sweep` on native arrays of one dtype."""
    if all(ranges.usual(X, Z, kernel) for kernel in kernels):
        yield from be.gram_sweep(X, Z, kernels, out=out)
        return
    for kernel in kernels:
        out = native_gram(be, X, Z, kernel, out)
        yield out


def native_half(be: Backend, X: Array, kernel: Kernel, dtype: DTypeLike | None = None) -> Half:
    """A backend's ``half_gram``: K(X, X) stored for products, for a kernel with a pair quantity."""
    if ranges.usual(X, None, kernel):
        return be.half_gram(X, kernel, dtype=dtype)
    if kernel.unit_diagonal:
        X, _, kernel = ranges.in_units(X, None, kernel, be.xp)
        return be.half_gram(X, kernel, dtype=dtype)
    return be.half_of(ranges.by_rows(be, X, None, kernel), dtype=dtype)


def _rows(be: Backend, X: Array, Z: Array, kernel: Kernel) -> tuple[Array, Array]:
    """X and Z as native arrays of one dtype with the same number of features."""
    X = be.asarray(X, "X", ndim=2)
    if X.shape[1] == 0:
        raise ValueError(f"X has no features: shape {X.shape}")
    if isinstance(kernel, Precomputed):
        if Z is not None:
            raise ValueError("with a precomputed kernel, X is K(X, Z) itself: omit Z")
        return X, None
    if Z is None:
        return kernel.scaled(be.xp, X), None
    Z = be.asarray(Z, "Z", ndim=2)
    if X.shape[1] != Z.shape[1]:
        raise ValueError(f"X has {X.shape[1]} features, but Z has {Z.shape[1]}")
    if X.dtype != Z.dtype:
        wide = be.xp.promote_types(X.dtype, Z.dtype)
        X, Z = be.asarray(X, dtype=wide, finite=False), be.asarray(Z, dtype=wide, finite=False)
    return _scaled(be, kernel, X, Z)


def _shape(X: Array, Z: Array, kernel: Kernel) -> tuple[int, int]:
    if isinstance(kernel, Precomputed):
        return X.shape[0], X.shape[1]
    return X.shape[0], (X if Z is None else Z).shape[0]


def _check_out(out: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    if out is not None and (
        getattr(out, "shape", None) != shape
        or not hasattr(out, "flags")
        or out.dtype != dtype
        or not out.flags.c_contiguous
        or not getattr(out.flags, "writeable", True)
    ):
        raise ValueError(
            f"out must be a writeable C-contiguous array of shape {shape} and dtype {dtype}, got "
            f"{getattr(out, 'shape', type(out).__name__)} {getattr(out, 'dtype', '')}"
        )
    return out
