"""Linear algebra on the processor: SciPy's LAPACK, and the tiled Cholesky of blocked.py.

A C-ordered symmetric K is K.T in Fortran order: LAPACK works in its buffer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from selfdistill_fast._backend import blocked
from selfdistill_fast._backend.base import Array
from selfdistill_fast._backend.reference import Reference

__all__ = ["Lapack"]

#: order up to which the workspace of LAPACK's ``evd`` fits its 32-bit integers
EVD_ROWS = 32_000


class Lapack(Reference):
    """The verbs of :class:`Backend` for linear algebra on the processor."""

    def eigh_bytes(self, n: int, dtype: DTypeLike) -> int:
        return (3 if n <= EVD_ROWS else 2) * n * n * np.dtype(dtype).itemsize

    def cholesky_bytes(self, n: int, dtype: DTypeLike) -> int:
        return n * (n + 2048) * np.dtype(dtype).itemsize  # K, L and M share a buffer

    def cholesky(self, K: Array) -> Array:
        return blocked.cholesky(np.require(K, requirements=["C", "A", "W"]))

    def cholesky_solve(self, L: Array, B: Array) -> Array:
        if L.shape[0] == 0:  # LAPACK's wrapper does not accept an empty array
            return B.copy()
        from scipy.linalg import get_lapack_funcs

        (potrs,) = get_lapack_funcs(("potrs",), (L,))
        X, _ = potrs(L.T, B, lower=0)
        return X

    def cholesky_inverse(self, L: Array) -> Array:
        return blocked.cholesky_inverse(np.require(L, requirements=["C", "A", "W"]))

    def eigh(self, K: Array) -> tuple[Array, Array]:
        """As the reference; V is Fortran-ordered and overwrites K.

        Divide and conquer (``evd``) is the fastest driver, has the best orthogonality, and works
        in place with 2 n² reals of workspace: 3 n² in total. Beyond n = 32,000 its workspace
        size overflows LAPACK's 32-bit integers; ``evr`` is used there, with 2 n² in total.
        """
        from scipy.linalg import eigh

        n = K.shape[0]
        if n == 0:
            return np.empty(0, K.dtype), np.empty((0, 0), K.dtype)
        driver = "evd" if n <= EVD_ROWS else "evr"
        d, V = eigh(K.T, overwrite_a=True, check_finite=False, driver=driver)
        return d, V

    def triangular_solve(self, R: Array, B: Array, *, lower: bool) -> Array:
        from scipy.linalg import solve_triangular

        return solve_triangular(R, B, lower=lower, check_finite=False)

    def svd(self, A: Array) -> tuple[Array, Array, Array]:
        from scipy.linalg import svd

        V, s, G = svd(A, full_matrices=False, overwrite_a=True, check_finite=False)
        return V, s, G

    def tridiagonal_bytes(self, n: int, dtype: DTypeLike) -> int:
        return n * (2 * n + 256) * np.dtype(dtype).itemsize  # K, and separately Q's reflectors

    def tridiagonalise(self, K: Array) -> tuple[Array, Array, Array]:
        from scipy.linalg import get_lapack_funcs

        n = K.shape[0]
        if n < 2:
            return np.diagonal(K).copy(), np.empty(0, K.dtype), None
        sytrd, sytrd_lwork = get_lapack_funcs(("sytrd", "sytrd_lwork"), (K,))
        lwork = int(sytrd_lwork(n, lower=1)[0])
        c, d, e, tau, _ = sytrd(K.T, lower=1, lwork=lwork, overwrite_a=1)
        # reflectors below the subdiagonal are those of a QR of rows and columns 1..n − 1
        return d, e, (np.asfortranarray(c[1:, :-1]), tau)

    def tridiagonal_rotate(self, Q: Any, B: Array, *, transpose: bool = False) -> Array:
        from scipy.linalg import get_lapack_funcs

        out = np.array(B, order="F")
        if Q is None or B.shape[1] == 0:
            return out
        reflectors, tau = Q
        # LAPACK's unblocked code temporarily writes ones into the reflectors, which other threads
        # may be reading; LAPACK uses it up to order 64, and if the workspace is short
        if len(tau) <= 64:
            reflectors = reflectors.copy(order="F")
        workspace = 64 * (B.shape[1] + 65)
        (ormqr,) = get_lapack_funcs(("ormqr",), (reflectors,))
        below = np.asfortranarray(out[1:])
        out[1:], _, _ = ormqr(
            "L", "T" if transpose else "N", reflectors, tau, below, workspace, overwrite_c=1
        )
        return out

    def tridiagonal_steps(
        self, d: Array, e: Array, lam: float, t: Array, n_steps: int
    ) -> tuple[Array, Array]:
        from scipy.linalg.lapack import dpttrf, dpttrs

        d, e, current = d.astype(np.float64), e.astype(np.float64), t.astype(np.float64)
        steps = np.full((n_steps, *t.shape), np.nan)
        radius = np.zeros(len(d))
        radius[:-1] += abs(e)
        radius[1:] += abs(e)
        strong = lam > (abs(d) + radius).max(initial=0.0)
        # the wrappers do not accept an empty off-diagonal; for order 1 it is not read
        D, E, info = dpttrf(d + lam, e if len(e) else np.zeros(1))
        for step in steps if info == 0 else ():
            step[...] = dpttrs(D, E, current)[0]
            if strong:
                current = d[:, None] * step
                current[:-1] += e[:, None] * step[1:]
                current[1:] += e[:, None] * step[:-1]
            else:
                current = current - lam * step
        return steps.astype(t.dtype), current.astype(t.dtype)
