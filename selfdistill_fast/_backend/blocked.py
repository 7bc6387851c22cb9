"""Cholesky factorisation, inverse and PᵀP by blocks, so that BLAS's ``syrk`` sees no large matrix.

The threaded ``syrk`` of OpenBLAS writes past its buffer for large orders and kills the process:
each thread packs its share of the columns, up to n/√threads, at a depth Q, into a buffer of 32 MiB
that does not grow with n. With two threads in float64 it suffices up to n = 15,400 with the
kernels for AVX-512 (Q = 384) and up to 23,100 with those for AVX2 (Q = 256). LAPACK's ``potrf``,
``lauum`` and ``potri`` call ``syrk``, and NumPy does for ``P @ P.T``. GEMM, ``trsm``, ``trmm`` and
``trtri`` do not have this fault, and diagonal blocks are small.

All calls go to one library, the one behind SciPy, through SciPy's public table of BLAS and LAPACK
functions (``scipy.linalg.cython_blas``). These work on parts of a matrix in place, and no second
pool of BLAS threads competes with the first. Ctrl-C takes effect between blocks.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["BLOCK_ROWS", "SYRK_ROWS", "cholesky", "cholesky_inverse", "inner_product"]

#: order of the diagonal blocks: the largest that LAPACK's factorisations see
BLOCK_ROWS = 512
#: the largest order that syrk sees: less than a third of what is known to crash
SYRK_ROWS = 4096


class _Part:
    """A part of a matrix in BLAS's order: address of its first entry, and leading dimension."""

    def __init__(self, address: int, step: int) -> None:
        self.address, self.step = address, step


class _Matrix:
    """A C-ordered square matrix as BLAS sees it: its transpose, in Fortran order."""

    def __init__(self, A: np.ndarray) -> None:
        if A.dtype not in (np.float32, np.float64) or not A.dtype.isnative:
            raise TypeError(f"expected float32 or float64, got {A.dtype}")
        if not (A.ndim == 2 and A.shape[0] == A.shape[1] and A.flags.carray):
            raise ValueError(f"expected a writeable C-contiguous square matrix, got {A.shape}")
        self.A, self.n = A, A.shape[0]

    def at(self, row: int, column: int) -> _Part:
        """The part that begins at (row, column) of the transpose."""
        return _Part(self.A.ctypes.data + (column * self.n + row) * self.A.itemsize, self.n)

    def routines(self, *names: str) -> list[Callable[..., int]]:
        """BLAS and LAPACK functions for this precision."""
        return [_routine(self.A.dtype.char, name) for name in names]


def cholesky(K: np.ndarray) -> np.ndarray:
    """Lower factor of a symmetric positive definite K = L Lᵀ, in its buffer.

    With U = Lᵀ, rows ``block`` of U follow from those above them:
    U_bb = chol(K_bb − U_ab ᵀU_ab) and U_bc = U_bb⁻ᵀ (K_bc − U_abᵀ U_ac).

    Parameters
    ----------
    K : (n, n) C-contiguous, float32 or float64; its lower triangle is read

    Raises
    ------
    numpy.linalg.LinAlgError
        K is not positive definite.
    """
    M = _Matrix(K)
    gemm, trsm, potrf = M.routines("gemm", "trsm", "potrf")
    n = M.n
    for start in range(0, n, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n)
        size = stop - start
        block, above = M.at(start, start), M.at(0, start)
        if start:
            gemm(b"T", b"N", size, n - start, start, -1.0, above, above, 1.0, block)
        minor = potrf(b"U", size, block)
        if minor > 0:
            raise np.linalg.LinAlgError(
                f"the leading minor of order {start + minor} is not positive"
            )
        if stop < n:
            trsm(b"L", b"U", b"T", b"N", size, n - stop, 1.0, block, M.at(start, stop))
        K[start:stop, stop:] = 0.0
        K[start:stop, start:stop] = np.tril(K[start:stop, start:stop])
    return K


def cholesky_inverse(L: np.ndarray) -> np.ndarray:
    """(L Lᵀ)⁻¹ in full from the lower factor, in its buffer.

    With U = Lᵀ and W = U⁻¹, columns ``block`` of W follow from those to their left,
    W_ab = −W_aa U_ab U_bb⁻¹, and those of M = WWᵀ from W and the columns to their right,
    M_ab = W_ab W_bbᵀ + W_ac W_bcᵀ.
    """
    M = _Matrix(L)
    gemm, trmm, trsm = M.routines("gemm", "trmm", "trsm")
    lauum, trtri = M.routines("lauum", "trtri")
    n = M.n
    for start in range(0, n, BLOCK_ROWS):
        size = min(BLOCK_ROWS, n - start)
        block, above = M.at(start, start), M.at(0, start)
        if start:
            trmm(b"L", b"U", b"N", b"N", start, size, -1.0, M.at(0, 0), above)
            trsm(b"R", b"U", b"N", b"N", start, size, 1.0, block, above)
        zero = trtri(b"U", b"N", size, block)
        if zero > 0:
            raise np.linalg.LinAlgError(f"entry {start + zero} of the factor's diagonal is zero")
    for start in range(0, n, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n)
        size = stop - start
        block, above = M.at(start, start), M.at(0, start)
        if start:
            trmm(b"R", b"U", b"T", b"N", start, size, 1.0, block, above)
        lauum(b"U", size, block)
        if stop < n:
            right = M.at(start, stop)
            gemm(b"N", b"T", stop, size, n - stop, 1.0, M.at(0, stop), right, 1.0, above)
    for start in range(0, n, BLOCK_ROWS):  # the lower triangle of L's buffer holds M
        stop = min(start + BLOCK_ROWS, n)
        square = L[start:stop, start:stop]
        square[...] = np.tril(square) + np.tril(square, -1).T
        L[start:stop, stop:] = L[stop:, start:stop].T
    return L


def inner_product(P: np.ndarray) -> np.ndarray:
    """PᵀP, exactly symmetric, of P (n, k)."""
    k = P.shape[1]
    if k <= SYRK_ROWS:
        product: np.ndarray = P.T @ P
        return product
    out = np.empty((k, k), P.dtype)
    for start in range(0, k, SYRK_ROWS):
        stop = min(start + SYRK_ROWS, k)
        columns = P[:, start:stop]
        out[start:stop, start:stop] = columns.T @ columns
        if stop < k:
            out[start:stop, stop:] = columns.T @ P[:, stop:]
            out[stop:, start:stop] = out[start:stop, stop:].T
    return out


# ------------------------------------------------------------- SciPy's functions
_INFO = ("potrf", "lauum", "trtri")


@functools.cache
def _routine(dtype: str, name: str) -> Callable[..., int]:
    """Call a BLAS or LAPACK function with characters, integers, reals and parts; its ``info``."""
    from scipy.linalg import cython_blas, cython_lapack

    table = (cython_lapack if name in _INFO else cython_blas).__pyx_capi__
    signature, address = _opened(table[{"d": "d", "f": "s"}[dtype] + name])
    integer = ctypes.c_int if b" int *" in signature else ctypes.c_int64
    real = ctypes.c_double if dtype == "d" else ctypes.c_float
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (signature.count(b",") + 1))(address)

    def call(*values: Any) -> int:
        info = integer(0)
        scalars: list[Any] = []
        arguments: list[Any] = []
        for value in values:
            if isinstance(value, _Part):
                arguments.append(value.address)
                value = value.step
            kind = {bytes: ctypes.c_char, float: real}.get(type(value), integer)
            scalars.append(kind(value))
            arguments.append(ctypes.addressof(scalars[-1]))
        if name in _INFO:
            arguments.append(ctypes.addressof(info))
        function(*arguments)
        if info.value < 0:
            raise ValueError(f"{name}: argument {-info.value} is not valid")
        return info.value

    return call


def _opened(capsule: Any) -> tuple[bytes, int]:
    """Signature and address of a function in a capsule."""
    api = ctypes.pythonapi
    name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", api)
    )
    signature = name(capsule)
    return signature, pointer(capsule, signature)
