"""Linear algebra on a CUDA device, by cuBLAS, cuSOLVER and kernels.cu.

Integer sizes: cuSOLVER's eigendecomposition uses its 64-bit interface (the workspace of the older
one overflows its 32-bit integer beyond n = 32,000). cuBLAS and ``potrf`` take 32-bit *dimensions*,
which only 2³¹ rows would exceed, but use 64-bit addresses; the workspace of ``potrf`` is of
order n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import DTypeLike

from selfdistill_fast._backend.base import Array
from selfdistill_fast._backend.cuda_device import CudaDevice, guarded
from selfdistill_fast._backend.cuda_kernels import SIDE, TARGETS

__all__ = ["CudaAlgebra", "parts_of", "passes", "total"]

#: column ranges of a product with K, each with its own sums, so that few rows keep the device busy
MAX_PARTS = 16
#: number of blocks that keeps any device busy
ENOUGH_BLOCKS = 1024
#: columns of the inverse computed at a time
INVERSE_COLUMNS = 1024
#: CUDA's limit for a grid dimension
MAX_GRID = 2**31 - 1


class CudaAlgebra(CudaDevice):
    """The verbs of :class:`Backend` for linear algebra on a CUDA device."""

    def eigh_bytes(self, n: int, dtype: DTypeLike) -> int:
        """K, which V overwrites, and the workspace size that cuSOLVER reports."""
        itemsize = np.dtype(dtype).itemsize
        try:
            workspace = self._eigh_workspace(n, np.dtype(dtype))[0]
        except Exception:  # a size that cuSOLVER rejects, or a library that fails
            workspace = (2 * n * n + 64 * n) * itemsize
        return n * n * itemsize + workspace

    def _eigh_workspace(self, n: int, dtype: np.dtype) -> tuple[int, int]:
        """Bytes on the device and on the host."""
        with self.on():
            cusolver = self.xp.cuda.cusolver
            params = cusolver.createParams()
            try:
                handle, kind = self.xp.cuda.device.get_cusolver_handle(), self._cuda_type(dtype)
                lower = self.xp.cuda.cublas.CUBLAS_FILL_MODE_LOWER
                on_device, on_host = cusolver.xsyevd_bufferSize(
                    handle, params, cusolver.CUSOLVER_EIG_MODE_VECTOR, lower, n, kind, 0, max(n, 1),
                    kind, 0, kind,
                )  # fmt: skip
                return on_device, on_host
            finally:
                cusolver.destroyParams(params)

    def _cuda_type(self, dtype: DTypeLike) -> int:
        runtime = self.xp.cuda.runtime
        return int(runtime.CUDA_R_64F if dtype == np.float64 else runtime.CUDA_R_32F)

    @guarded
    def eigh(self, K: Array) -> tuple[Array, Array]:
        """As the reference; V is Fortran-ordered and overwrites K."""
        xp, n = self.xp, K.shape[0]
        if n == 0:
            return xp.empty(0, K.dtype), xp.empty((0, 0), K.dtype)
        cusolver, cublas = xp.cuda.cusolver, xp.cuda.cublas
        K = xp.ascontiguousarray(K)
        d, info, kind = xp.empty(n, K.dtype), xp.zeros(1, np.int32), self._cuda_type(K.dtype)
        handle, params = xp.cuda.device.get_cusolver_handle(), cusolver.createParams()
        try:
            what = (
                handle, params, cusolver.CUSOLVER_EIG_MODE_VECTOR, cublas.CUBLAS_FILL_MODE_LOWER,
                n, kind, K.data.ptr, n, kind, d.data.ptr, kind,
            )  # fmt: skip
            on_device, on_host = cusolver.xsyevd_bufferSize(*what)
            work, host_work = xp.empty(on_device, np.int8), np.empty(on_host, np.int8)
            cusolver.xsyevd(
                *what, work.data.ptr, on_device, host_work.ctypes.data, on_host, info.data.ptr
            )
            failed = int(info[0])  # waits for the device, which reads host_work until then
        finally:
            cusolver.destroyParams(params)
        if failed:
            raise LinAlgError(f"the eigendecomposition did not converge (cuSOLVER info {failed})")
        return d, K.T

    def cholesky_bytes(self, n: int, dtype: DTypeLike) -> int:
        """K, which L overwrites, M in addition, and a workspace of columns."""
        return (2 * n + 1024) * n * np.dtype(dtype).itemsize

    @guarded
    def cholesky(self, K: Array) -> Array:
        """As the reference, in the buffer of K."""
        xp, n = self.xp, K.shape[0]
        if n == 0:
            return K
        K = xp.ascontiguousarray(K)
        cusolver, cublas = xp.cuda.cusolver, xp.cuda.cublas
        double = K.dtype == np.float64
        size = cusolver.dpotrf_bufferSize if double else cusolver.spotrf_bufferSize
        potrf = cusolver.dpotrf if double else cusolver.spotrf
        handle, info = xp.cuda.device.get_cusolver_handle(), xp.zeros(1, np.int32)
        upper = cublas.CUBLAS_FILL_MODE_UPPER  # of the transpose, which is what cuSOLVER reads
        count = size(handle, upper, n, K.data.ptr, n)
        work = xp.empty(max(count, 1), K.dtype)
        potrf(handle, upper, n, K.data.ptr, n, work.data.ptr, count, info.data.ptr)
        failed = int(info[0])
        if failed > 0:
            raise LinAlgError(f"the leading minor of order {failed} is not positive")
        self._above_diagonal(K, mirrored=False)
        return K

    def _above_diagonal(self, K: Array, *, mirrored: bool) -> None:
        n, tiles = K.shape[0], -(-K.shape[0] // SIDE)
        grid = (min(tiles * (tiles + 1) // 2, MAX_GRID),)
        self._launch("upper_triangle", K.dtype, grid, (K, n, n, int(mirrored)))

    @guarded
    def cholesky_solve(self, L: Array, B: Array) -> Array:
        """As the reference."""
        X = self.xp.array(B, dtype=L.dtype, order="C", copy=True)
        L = self.xp.ascontiguousarray(L)
        self._solve(L, X, lower=True, transposed=False)
        self._solve(L, X, lower=True, transposed=True)
        return X

    @guarded
    def cholesky_inverse(self, L: Array) -> Array:
        """As the reference; 2n³/3 flops: solves for each column of the inverse below its diagonal.

        The part above the diagonal is its mirror image.
        """
        xp, n = self.xp, L.shape[0]
        M = xp.zeros((n, n), L.dtype)
        for start in range(0, n, INVERSE_COLUMNS):
            stop = min(start + INVERSE_COLUMNS, n)
            M[start:stop, start:stop] = xp.eye(stop - start, dtype=L.dtype)
            for transposed in (False, True):
                self._solve(
                    L[start:, start:], M[start:, start:stop], lower=True, transposed=transposed
                )
        self._above_diagonal(M, mirrored=True)
        return M

    @guarded
    def inner_product(self, P: Array) -> Array:
        """As the reference."""
        return P.T @ P

    @guarded
    def triangular_solve(self, R: Array, B: Array, *, lower: bool) -> Array:
        """As the reference."""
        X = self.xp.array(B, dtype=R.dtype, order="C", copy=True)
        self._solve(self.xp.ascontiguousarray(R), X, lower=lower, transposed=False)
        return X

    @guarded
    def svd(self, A: Array) -> tuple[Array, Array, Array]:
        """As the reference; for a tall A, from its triangular factor."""
        linalg = self.xp.linalg
        if A.shape[0] > A.shape[1] > 0:
            Q, R = linalg.qr(A)
            U, s, G = linalg.svd(R, full_matrices=False)
            V = Q @ U
        else:
            V, s, G = linalg.svd(A, full_matrices=False)
        if not bool(self.xp.isfinite(s).all()):  # CuPy ignores cuSOLVER's status
            raise LinAlgError("the singular value decomposition did not converge")
        return V, s, G

    # CuPy does not expose cuSOLVER's reduction to tridiagonal form. The second half of an
    # eigendecomposition is cheap here, so T is diagonal and Q holds eigenvectors.
    def tridiagonal_bytes(self, n: int, dtype: DTypeLike) -> int:
        """As :meth:`eigh_bytes`."""
        return self.eigh_bytes(n, dtype)

    def tridiagonalise(self, K: Array) -> tuple[Array, Array, Array]:
        """As the reference; the off-diagonal is zero."""
        d, V = self.eigh(K)
        return d, self.xp.zeros(max(len(d) - 1, 0), d.dtype), V

    @guarded
    def tridiagonal_rotate(self, Q: Any, B: Array, *, transpose: bool = False) -> Array:
        """As the reference."""
        return (Q.T if transpose else Q) @ B

    @guarded
    def tridiagonal_steps(
        self, d: Array, e: Array, lam: float, t: Array, n_steps: int
    ) -> tuple[Array, Array]:
        """As the reference, for the diagonal T of :meth:`tridiagonalise`."""
        xp = self.xp
        d, current = d.astype(np.float64)[:, None], t.astype(np.float64)
        definite = bool((d > -lam).all())
        steps = xp.empty((n_steps, *t.shape), t.dtype)
        for i in range(n_steps):
            step = current / (d + lam) if definite else current * float("nan")
            current = d * step
            steps[i] = step
        return steps, current.astype(t.dtype)

    def _solve(self, L: Array, B: Array, *, lower: bool, transposed: bool) -> None:
        """B ← L⁻¹ B, or L⁻ᵀ B, for triangular L; both with contiguous (long) rows."""
        if 0 in B.shape:
            return
        cublas = self.xp.cuda.cublas
        trsm = cublas.dtrsm if L.dtype == np.float64 else cublas.strsm
        one = np.ones(1, L.dtype)
        # cuBLAS reads by columns: it sees Bᵀ = Xᵀ Lᵀ, and Lᵀ where L is stored
        trsm(
            self.xp.cuda.device.get_cublas_handle(), cublas.CUBLAS_SIDE_RIGHT,
            cublas.CUBLAS_FILL_MODE_UPPER if lower else cublas.CUBLAS_FILL_MODE_LOWER,
            cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N,
            cublas.CUBLAS_DIAG_NON_UNIT, B.shape[1], B.shape[0], one.ctypes.data,
            L.data.ptr, L.strides[0] // L.itemsize, B.data.ptr, B.strides[0] // B.itemsize,
        )  # fmt: skip

    @guarded
    def squares_matmul(self, V: Array, F: Array) -> Array:
        """(V∘V) @ F in one pass over V; the squares exist only in shared memory."""
        xp, (n, m), p = self.xp, V.shape, F.shape[1]
        if 0 in (n, m, p):
            return xp.zeros((n, p), F.dtype)
        F = xp.ascontiguousarray(F.astype(V.dtype, copy=False))
        rows, parts = parts_of(n, m)
        sums = xp.empty((parts, n, p), np.float64)
        strides = tuple(stride // V.itemsize for stride in V.strides)
        for q, width in passes(p):
            args = (V, *strides, F, sums, n, m, p, q)
            self._launch(f"squared{width}", V.dtype, (rows, parts), args)
        return total(sums).astype(F.dtype)


def parts_of(n: int, m: int) -> tuple[int, int]:
    """Number of tile rows, and of column ranges; depends on the sizes only."""
    rows = -(-n // SIDE)
    return rows, max(1, min(MAX_PARTS, ENOUGH_BLOCKS // rows, -(-m // SIDE)))


def passes(p: int) -> Iterator[tuple[int, int]]:
    """First target and number of targets of each pass over K."""
    q = 0
    while q < p:
        width = TARGETS if p - q <= TARGETS else 4 * TARGETS
        yield q, width
        q += width


def total(sums: Array) -> Array:
    """Sum over the parts, in their order."""
    total = sums[0]
    for part in range(1, sums.shape[0]):
        total = total + sums[part]
    return total
