"""The reference backend: NumPy, one line per equation, every sum in double.

It is the oracle for the tests of the fast backends, and the base class of the CPU backend.
:class:`Backend` documents the verbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from selfdistill_fast._backend import blocked, host
from selfdistill_fast._backend.arrays import device_number, host_array
from selfdistill_fast._backend.base import Array, Backend, Half
from selfdistill_fast.kernels import Kernel

__all__ = ["Reference"]


class Reference(Backend):
    """Verbs of a backend, in NumPy; it has no loops of its own and ignores ``n_threads``."""

    name = "reference"
    xp = np

    # ---------------------------------------------------------------- arrays
    def asarray(
        self,
        a: Any,
        name: str = "array",
        *,
        ndim: int | Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        finite: bool = True,
    ) -> Array:
        if device_number(a) is not None:
            raise TypeError(
                f"{name} is on GPU {device_number(a)}, but backend={self.name!r} computes on the "
                f"host: copy {name} there, or omit backend"
            )
        return host_array(a, name, ndim=ndim, dtype=dtype, finite=finite)

    def to_numpy(self, a: Any) -> np.ndarray:
        return np.asarray(a)

    def available_memory(self) -> int:
        return host.available_memory()

    # --------------------------------------------------------------- kernels
    def gram(self, X: Array, Z: Array, kernel: Kernel, out: Array = None) -> Array:
        xp = self.xp
        A = X.astype(np.float64)
        B = A if Z is None else Z.astype(np.float64)
        with np.errstate(over="ignore", under="ignore"):
            xx = (A * A).sum(1)[:, None]
            zz = (B * B).sum(1)[None, :]
            K = kernel.of_pair(xp, self._pair(A, B, kernel.pair), xx, zz)
            if Z is None:
                K = 0.5 * (K + K.T)
                K[np.diag_indices_from(K)] = kernel.diagonal(xp, xx[:, 0])
            if out is None:
                return K.astype(X.dtype, copy=False)
            out[...] = K
        return out

    @staticmethod
    def _pair(A: Array, B: Array, pair: str) -> Array:
        """The pair quantity of all rows of A and B, without cancellation."""
        from scipy.spatial.distance import cdist

        if pair == "inner":
            return blocked.inner_product(A.T) if A is B else A @ B.T
        if pair == "angle":
            # θ = 2 atan2(‖u − v‖, ‖u + v‖) on unit rows is accurate at 0 and π
            U, V = (
                M / np.maximum(np.linalg.norm(M, axis=1, keepdims=True), 1e-300) for M in (A, B)
            )
            return 2.0 * np.arctan2(cdist(U, V), cdist(U, -V))
        if 0 in (A.shape[0], B.shape[0]):
            return np.zeros((A.shape[0], B.shape[0]))
        return cdist(A, B, pair)

    def gram_matmul(self, X: Array, Z: Array, W: Array, kernel: Kernel, out: Array = None) -> Array:
        other = X if Z is None else Z
        if out is None:
            out = self.xp.empty((X.shape[0], W.shape[1]), dtype=W.dtype)
        block = max(1, (1 << 22) // max(other.shape[0], 1))
        for start in range(0, X.shape[0], block):
            rows = slice(start, start + block)
            K = self.gram(X[rows].astype(np.float64), other.astype(np.float64), kernel)
            out[rows] = K @ W.astype(np.float64)
        return out

    # ------------------------------------- storage of K(X, X) for products
    def half_gram(self, X: Array, kernel: Kernel, dtype: DTypeLike | None = None) -> Half:
        dtype = self._half_dtype(X, dtype)
        self._check_half_kernel(kernel)
        return Half(X.shape[0], self.gram(X, None, kernel).astype(dtype, copy=False))

    def half_of(self, K: Array, dtype: DTypeLike | None = None) -> Half:
        self._check_square(K)
        upper = self.xp.triu(K)
        upper += self.xp.triu(K, 1).T
        return Half(K.shape[0], upper.astype(self._half_dtype(K, dtype), copy=False))

    def half_matmul(self, half: Half, V: Array, out: Array = None) -> Array:
        out = self._half_out(half, V, out)
        block = max(1, (1 << 22) // max(half.n, 1))
        for start in range(0, half.n, block):
            rows = slice(start, start + block)
            out[rows] = half.entries[rows].astype(np.float64) @ V
        return out

    # -------------------------------------------------------- linear algebra
    def eigh_bytes(self, n: int, dtype: DTypeLike) -> int:
        return 4 * n * n * np.dtype(dtype).itemsize

    def eigh(self, K: Array) -> tuple[Array, Array]:
        return np.linalg.eigh(K)

    def cholesky_bytes(self, n: int, dtype: DTypeLike) -> int:
        return 4 * n * n * np.dtype(dtype).itemsize

    def cholesky(self, K: Array) -> Array:
        if len(K) > blocked.SYRK_ROWS:
            return blocked.cholesky(np.array(K, order="C"))
        return np.linalg.cholesky(K)

    def cholesky_solve(self, L: Array, B: Array) -> Array:
        return np.linalg.solve(L.T, np.linalg.solve(L, B))

    def cholesky_inverse(self, L: Array) -> Array:
        return blocked.inner_product(np.linalg.inv(L))

    def inner_product(self, P: Array) -> Array:
        return blocked.inner_product(P)

    def triangular_solve(self, R: Array, B: Array, *, lower: bool) -> Array:
        return np.linalg.solve(R, B)

    def svd(self, A: Array) -> tuple[Array, Array, Array]:
        return np.linalg.svd(A, full_matrices=False)

    def tridiagonal_bytes(self, n: int, dtype: DTypeLike) -> int:
        return 4 * n * n * np.dtype(dtype).itemsize

    def tridiagonalise(self, K: Array) -> tuple[Array, Array, Array]:
        from scipy.linalg import hessenberg

        T, Q = hessenberg(K, calc_q=True)
        return np.diagonal(T).copy(), np.diagonal(T, -1).copy(), Q

    def tridiagonal_rotate(self, Q: Any, B: Array, *, transpose: bool = False) -> Array:
        return (Q.T if transpose else Q) @ B

    def tridiagonal_steps(
        self, d: Array, e: Array, lam: float, t: Array, n_steps: int
    ) -> tuple[Array, Array]:
        d64, e64 = d.astype(np.float64), e.astype(np.float64)
        T = np.diag(d64) + np.diag(e64, 1) + np.diag(e64, -1)
        strong = lam > np.abs(T).sum(1).max(initial=0.0)
        M = np.full_like(T, np.nan)
        if np.linalg.eigvalsh(T).min(initial=0.0) > -lam:
            M = np.linalg.inv(T + lam * np.eye(len(T)))
        steps, current = [], t.astype(np.float64)
        for _ in range(n_steps):
            steps.append(M @ current)
            current = T @ steps[-1] if strong else current - lam * steps[-1]
        return np.stack(steps).astype(t.dtype), current.astype(t.dtype)

    def squares_matmul(self, V: Array, F: Array) -> Array:
        out = self.xp.empty((V.shape[0], F.shape[1]), dtype=F.dtype)
        block = max(1, (1 << 20) // max(V.shape[1], 1))
        for start in range(0, V.shape[0], block):
            rows = slice(start, start + block)
            out[rows] = self.xp.square(V[rows]) @ F
        return out

    # --------------------------------------------------------------- filters
    def shrinkage_path(self, d: Array, lam: Array, alpha: Array) -> Array:
        xp = self.xp
        d64 = d.astype(np.float64)
        A = d64 / (d64 + lam[:, None])
        B = xp.empty((lam.shape[0], alpha.shape[0], d.shape[0]), dtype=d.dtype)
        previous = xp.ones_like(A)
        for t in range(alpha.shape[0]):
            weight = 0.0 if t == 0 else float(alpha[t])
            previous = A * ((1.0 - weight) * previous + weight)
            B[:, t] = previous
        return B

    def pure_filters(self, d: Array, lam: Array, n_steps: int) -> Array:
        xp = self.xp
        d64 = d.astype(np.float64)
        M = 1.0 / (d64 + lam[:, None])
        C = xp.empty((lam.shape[0], n_steps, d.shape[0]), dtype=d.dtype)
        for t in range(n_steps):
            C[:, t] = M
            M = M * d64 / (d64 + lam[:, None])
        return C
