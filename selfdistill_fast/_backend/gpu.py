"""The GPU backend: CuPy's arrays, cuBLAS and cuSOLVER, and the CUDA kernels of kernels.cu.

::

    cuda_loader.py    CuPy and its devices, or why there are none
    cuda_device.py    CudaDevice    arrays, memory, transfers, rates
    cuda_algebra.py   CudaAlgebra   linear algebra
    gpu.py            Gpu           Gram matrices, products with them, filters
    cuda_kernels.py   kernels.cu, compiled

:class:`Backend` documents the verbs. Native arrays are CuPy arrays on one device. The kernels use
64-bit indices. Importing this module imports neither CuPy nor CUDA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from selfdistill_fast import _core
from selfdistill_fast._backend.base import Array, Half
from selfdistill_fast._backend.cuda_algebra import MAX_GRID, CudaAlgebra, parts_of, passes, total
from selfdistill_fast._backend.cuda_device import guarded
from selfdistill_fast._backend.cuda_kernels import BLOCK, SIDE
from selfdistill_fast.kernels import Kernel

__all__ = ["Gpu"]

#: columns of X up to which K is computed in one pass by differences; beyond, cuBLAS computes the
#: inner products, because the speed of its tensor cores outweighs a second pass over K
FUSED_COLUMNS = 64
#: rows of K per matrix product: few enough that the superfluous part of K(X, X) above the diagonal
#: is small, and enough for the full rate of the product
PANEL_ROWS = 8192
#: bytes of K formed at a time by a product with many columns of X
SLAB_BYTES = 512 << 20
_PAIRS = {"sqeuclidean": "squares", "cityblock": "l1", "inner": "inner", "angle": "angle"}


class Gpu(CudaAlgebra):
    """Verbs of a backend on one CUDA device.

    Parameters and errors are those of :class:`CudaDevice`.

    Notes
    -----
    float64 agrees with the reference to its rounding. In float32, pair quantities and matrix
    products are float32 (without TensorFloat-32) and sums over tiles of K are double. The relative
    error of K is about 1e-5 of its largest entry, and that of a chain of refits
    max(1e-5, 100 ε (d_max/λ) Σ|c_k|) with ε = 1.2e-7; numbers below 1e-38 are zero.
    """

    # --------------------------------------------------------------- helpers
    @staticmethod
    def _kappa(kernel: Kernel) -> tuple[int, int, float, float]:
        name, a, b, degree = kernel.c_spec
        return _core.KERNEL_IDS[name], int(degree), float(a), float(b)

    def _packed(self, X: Array, shift: Array) -> tuple[Array, Array]:
        """Rows minus ``shift`` and their squared norms; unit rows and norms for shift None."""
        xp, (n, d) = self.xp, X.shape
        packed, norms = xp.empty_like(X), xp.empty(n, X.dtype)
        args = (X, 0 if shift is None else shift, n, d, int(shift is None), packed, norms)
        self._launch("pack_rows", X.dtype, (min(n, 1 << 20),), args)
        return packed, norms

    def _operands(self, X: Array, Z: Array, kernel: Kernel) -> tuple[Any, Any, Any, Any]:
        """Rows of X and Z in the kernels' layout, with norms if they are needed."""
        symmetric = Z is None
        if kernel.pair == "angle":
            U, norms_x = self._packed(X, None)
            V, norms_z = (U, norms_x) if symmetric else self._packed(Z, None)
            return U, V, norms_x, norms_z
        return X, X if symmetric else Z, 0, 0

    def _inner(self, A: Array, B: Array, out: Array) -> None:
        """out (a, b) = A Bᵀ by cuBLAS; A (a, d), B (b, d) contiguous, out with long rows."""
        cublas = self.xp.cuda.cublas
        gemm = cublas.dgemm if A.dtype == np.float64 else cublas.sgemm
        one, zero = np.ones(1, A.dtype), np.zeros(1, A.dtype)
        d = A.shape[1]
        gemm(
            self.xp.cuda.device.get_cublas_handle(), cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N,
            B.shape[0], A.shape[0], d, one.ctypes.data, B.data.ptr, d, A.data.ptr, d,
            zero.ctypes.data, out.data.ptr, out.strides[0] // out.itemsize,
        )  # fmt: skip

    # --------------------------------------------------------------- kernels
    @guarded
    def gram(self, X: Array, Z: Array, kernel: Kernel, out: Array = None) -> Array:
        """K(X, Z), each tile of K(X, X) computed once; see :meth:`Backend.gram`."""
        xp = self.xp
        shape = (X.shape[0], (X if Z is None else Z).shape[0])
        target = out
        if out is None or not out.flags.c_contiguous or _overlap(xp, out, X, Z):
            target = xp.empty(shape, X.dtype)
        if 0 not in shape:
            self._gram(X, Z, kernel, target)
        if out is None or target is out:
            return target
        out[...] = target
        return out

    def _gram(self, X: Array, Z: Array, kernel: Kernel, out: Array) -> None:
        """out (n, m) = K(X, Z); rows of ``out`` may be longer than m."""
        pair, d = _PAIRS[kernel.pair], X.shape[1]
        n, m = out.shape
        tiles = -(-n // SIDE) * -(-m // SIDE)
        if Z is None:
            tiles = -(-n // SIDE) * (-(-n // SIDE) + 1) // 2
        sizes = (out, n, m, d, out.strides[0] // out.itemsize, int(Z is None))
        grid = (min(tiles, MAX_GRID),)
        if pair == "l1" or d <= FUSED_COLUMNS:
            args = (*self._operands(X, Z, kernel), *sizes, *self._kappa(kernel))
            self._launch(f"gram_{pair}", X.dtype, grid, args)
            return
        x, z, norms_x, norms_z = self._operands(X, Z, kernel)
        packed_x, packed_z = x, z
        if pair == "squares":
            shift = self._centre(X if Z is None else Z)
            packed_x, norms_x = self._packed(x, shift)
            packed_z, norms_z = (packed_x, norms_x) if Z is None else self._packed(z, shift)
        for start in range(0, n, PANEL_ROWS):
            stop = min(start + PANEL_ROWS, n)
            columns = stop if Z is None else m  # K(X, X): on and below the diagonal
            self._inner(packed_x[start:stop], packed_z[:columns], out[start:stop, :columns])
        args = (x, z, norms_x, norms_z, *sizes, *self._kappa(kernel))
        self._launch(f"finish_{pair}", X.dtype, grid, args)

    def _centre(self, rows: Array) -> Array:
        """The mean of at most 1024 evenly spaced rows; 0 where it is not finite."""
        mean = rows[:: max(1, rows.shape[0] // 1024)].astype("float64").mean(0).astype(rows.dtype)
        return self.xp.where(self.xp.isfinite(mean), mean, self.xp.zeros_like(mean))

    @guarded
    def gram_matmul(self, X: Array, Z: Array, W: Array, kernel: Kernel, out: Array = None) -> Array:
        """K(X, Z) @ W without forming K; see :meth:`Backend.gram_matmul`.

        Up to ``FUSED_COLUMNS`` columns of X, and for the Laplacian, entries of K exist only in
        registers and sums over tiles are double; one pass handles 64 columns of W. Beyond, K is
        formed in slabs of ``SLAB_BYTES``, whose products are added in double.
        """
        xp, (n, d), p = self.xp, X.shape, W.shape[1]
        m = (X if Z is None else Z).shape[0]
        out = self._matmul_out(X, Z, W, out)
        if W.dtype != X.dtype:  # sums in double need everything else in double
            X, Z = X.astype(W.dtype), None if Z is None else Z.astype(W.dtype)
        if 0 in (n, m, p):
            out[...] = 0
        elif kernel.pair == "cityblock" or d <= FUSED_COLUMNS:
            out[...] = self._fused_matmul(X, Z, xp.ascontiguousarray(W), kernel)
        else:
            self._slab_matmul(X, X if Z is None else Z, W, kernel, out)
        return out

    def _fused_matmul(self, X: Array, Z: Array, W: Array, kernel: Kernel) -> Array:
        (n, d), (m, p) = X.shape, W.shape
        pair, parameters = _PAIRS[kernel.pair], self._kappa(kernel)
        operands = self._operands(X, Z, kernel)
        rows, parts = parts_of(n, m)
        sums = self.xp.empty((parts, n, p), np.float64)
        if p == 1:
            args = (*operands, W, sums, n, m, d, *parameters)
            self._launch(f"vector_{pair}", X.dtype, (rows, parts), args)
            return total(sums)
        for q, width in passes(p):
            what = (*operands, W, sums, n, m, d, p, q, *parameters)
            self._launch(f"product{width}_{pair}", X.dtype, (rows, parts), what)
        return total(sums)

    def _slab_matmul(self, X: Array, Z: Array, W: Array, kernel: Kernel, out: Array) -> None:
        xp, n, m = self.xp, X.shape[0], Z.shape[0]
        width = min(m, 16384)  # entries of a row of K summed in the dtype of X
        height = max(1, min(n, SLAB_BYTES // (width * X.dtype.itemsize)))
        slab = xp.empty((height, width), X.dtype)
        for start in range(0, n, height):
            rows = X[start : start + height]
            total = xp.zeros((rows.shape[0], W.shape[1]), np.float64)
            for first in range(0, m, width):
                columns = Z[first : first + width]
                K = slab[: rows.shape[0], : columns.shape[0]]
                self._gram(rows, columns, kernel, K)
                total += K @ W[first : first + width]
            out[start : start + height] = total

    # ------------------------------------------------------ storage of K: full
    # Storing both triangles allows products at the full rate of cuBLAS.
    @guarded
    def half_gram(self, X: Array, kernel: Kernel, dtype: DTypeLike | None = None) -> Half:
        """K(X, X) in full storage; see :meth:`Backend.half_gram`."""
        dtype = self._half_dtype(X, dtype)
        self._check_half_kernel(kernel)
        if dtype == X.dtype:
            return Half(X.shape[0], self.gram(X, None, kernel))
        n = X.shape[0]
        K = self.xp.empty((n, n), dtype)
        height = max(1, SLAB_BYTES // max(n * X.dtype.itemsize, 1))
        for start in range(0, n, height):
            K[start : start + height] = self.gram(X[start : start + height], X, kernel)
        return Half(n, K)

    @guarded
    def half_of(self, K: Array, dtype: DTypeLike | None = None) -> Half:
        """K in full storage; see :meth:`Backend.half_of`."""
        self._check_square(K)
        stored = self.xp.array(K.T, dtype=self._half_dtype(K, dtype), order="C", copy=True)
        if K.shape[0]:
            self._above_diagonal(stored, mirrored=True)  # from the upper triangle of K
        return Half(K.shape[0], stored)

    @guarded
    def half_matmul(self, half: Half, V: Array, out: Array = None) -> Array:
        """K @ V in double; see :meth:`Backend.half_matmul`."""
        out = self._half_out(half, V, out)
        K, n = half.entries, half.n
        if 0 in V.shape:
            return out
        if V.shape[1] == 1:
            rows, parts = parts_of(n, n)
            sums = self.xp.empty((parts, n, 1), np.float64)
            args = (K, n, self.xp.ascontiguousarray(V), sums, n, n)
            self._launch("stored_vector", K.dtype, (rows, parts), args)
            out[...] = total(sums)
        elif K.dtype == np.float64:
            out[...] = K @ V
        else:
            height = max(1, SLAB_BYTES // (8 * n))
            for start in range(0, n, height):
                part = slice(start, start + height)
                out[part] = K[part].astype(np.float64) @ V
        return out

    # --------------------------------------------------------------- filters
    def _filter_grid(self, count: int) -> tuple[int]:
        return (min(-(-count // BLOCK), 1 << 20),)

    @guarded
    def shrinkage_path(self, d: Array, lam: Array, alpha: Array) -> Array:
        """diag B^(1..T); see :meth:`Backend.shrinkage_path`."""
        xp, k, L, T = self.xp, d.shape[0], lam.shape[0], alpha.shape[0]
        d, lam, alpha = (
            xp.ascontiguousarray(xp.asarray(a, dtype=t))
            for a, t in ((d, d.dtype), (lam, np.float64), (alpha, np.float64))
        )
        B = xp.empty((L, T, k), d.dtype)
        args = (d, k, lam, L, alpha, T, B)
        self._launch("shrinkage_path", d.dtype, self._filter_grid(L * k), args)
        return B

    @guarded
    def pure_filters(self, d: Array, lam: Array, n_steps: int) -> Array:
        """Pure-step filters; see :meth:`Backend.pure_filters`."""
        xp, k, L = self.xp, d.shape[0], lam.shape[0]
        d, lam = xp.ascontiguousarray(d), xp.ascontiguousarray(xp.asarray(lam, dtype=np.float64))
        C = xp.empty((L, n_steps, k), d.dtype)
        args = (d, k, lam, L, n_steps, C)
        self._launch("pure_filters", d.dtype, self._filter_grid(L * k), args)
        return C


def _overlap(xp: Any, out: Array, *inputs: Array) -> bool:
    return any(a is not None and bool(xp.may_share_memory(out, a)) for a in inputs)
