"""The CPU backend: the C loops of ``_core``, and LAPACK (lapack.py).

:class:`Backend` documents the verbs. Native arrays are NumPy arrays. The results of the package's
own loops are bit-identical for any number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from selfdistill_fast import _core
from selfdistill_fast._backend import threads
from selfdistill_fast._backend.base import Array, Half
from selfdistill_fast._backend.lapack import Lapack
from selfdistill_fast.kernels import Kernel

__all__ = ["Cpu"]

#: bytes from which ``out`` bypasses the caches, since no cache could hold it
STREAM_BYTES = 16 << 20
#: columns of X from which kernels that share a distance read it from memory instead of
#: recomputing it
SHARE_COLUMNS = 64
#: row and column blocks of ``gram_matmul``; limits its memory to this many times that of the
#: result, in double
MATMUL_BLOCKS = 12
#: bytes of a basis processed at a time by a pass of Gram-Schmidt
PROJECTED_BYTES = 16 << 20
#: targets up to which the symmetry of K(X, X) is used in a product
MATMUL_MIRRORED = 32


def _readable(a: np.ndarray) -> np.ndarray:
    """``a`` itself if the loops can read it, else a copy."""
    return np.require(a, requirements=["C", "A"])


class Cpu(Lapack):
    """Verbs of a backend on the processor.

    Parameters
    ----------
    n_threads : int, optional
        Threads for this library's own loops. None: according to OMP_NUM_THREADS, the affinity of
        the process and its cgroup quota. LAPACK and BLAS have their own setting.
    """

    name = "cpu"

    def __init__(self, n_threads: int | None = None) -> None:
        super().__init__(threads.check_n_threads(n_threads))

    def _run(self, function: threads.Work, count: int, cost_ns: float) -> None:
        threads.run(function, count, cost_ns, self.n_threads)

    # --------------------------------------------------------------- kernels
    def _packed(
        self, X: Array, Z: Array, kernel: Kernel, out: Array = None, *, stream: bool = False
    ) -> _core.Gram:
        stream = stream or (out is not None and out.nbytes >= STREAM_BYTES)
        X = _readable(X)
        Z = None if Z is None else _readable(Z)
        job = _core.Gram(X, Z, kernel.c_spec, out, stream=stream)
        self._run(job.pack, job.n_panels, 24.0 * X.shape[1] + 100.0)
        return job

    @staticmethod
    def _tile_ns(job: _core.Gram, d: int) -> float:
        return job.tile**2 * (0.4 + 0.04 * d)

    def gram(self, X: Array, Z: Array, kernel: Kernel, out: Array = None) -> Array:
        """K(X, Z), each tile of K(X, X) computed once; see :meth:`Backend.gram`.

        In float32 the pair quantities are float32, and errors are about 1e-5 of K's largest entry.
        """
        shape = (X.shape[0], (X if Z is None else Z).shape[0])
        target = out
        if out is None or not _writable_apart(out, X, Z):
            target = np.empty(shape, dtype=X.dtype)
        job = self._packed(X, Z, kernel, target)
        self._run(job.gram, job.n_tiles, self._tile_ns(job, X.shape[1]))
        if out is None:
            return target
        if target is not out:
            out[...] = target
        return out

    def gram_matmul(self, X: Array, Z: Array, W: Array, kernel: Kernel, out: Array = None) -> Array:
        """K(X, Z) @ W without forming K; see :meth:`Backend.gram_matmul`.

        Sums across tiles are in double, also for float32; all sums are if W is float64. Besides
        the packed rows it needs up to ``MATMUL_BLOCKS`` times the memory of the result, in
        double.
        """
        n, p = X.shape[0], W.shape[1]
        m = (X if Z is None else Z).shape[0]
        out = self._matmul_out(X, Z, W, out)
        if 0 in (n, m, p):
            out[...] = 0
            return out
        mirrored = Z is None and p <= MATMUL_MIRRORED
        job = self._packed(X, Z if Z is not None or mirrored else X, kernel)
        rows, columns = job.tile_grid

        # Blocks of tiles, whose number depends on the sizes only. Each column block has its own
        # sums, which are added in order at the end, independent of the thread.
        if mirrored:
            starts = _cut(rows, MATMUL_BLOCKS)
            blocks = [(i, j) for i in range(len(starts) - 1) for j in range(i, len(starts) - 1)]
            row_starts = column_starts = starts
        else:
            row_starts = _cut(rows, max(rows // 2, 1))
            column_starts = _cut(columns, max(1, MATMUL_BLOCKS // (len(row_starts) - 1)))
            blocks = [
                (i, j) for i in range(len(row_starts) - 1) for j in range(len(column_starts) - 1)
            ]
        Wt = _core.empty_aligned((p, job.tile * columns), W.dtype)
        Wt[:, :m] = W.T
        Wt[:, m:] = 0
        sums = np.zeros((max(len(column_starts) - 1, 1), p, job.tile * max(rows, columns)))

        def multiply(lo: int, hi: int) -> Iterator[None]:
            for i, j in blocks[lo:hi]:
                for row in range(row_starts[i], row_starts[i + 1]):
                    job.multiply(
                        (row, row + 1),
                        (column_starts[j], column_starts[j + 1]),
                        Wt,
                        sums[j],
                        sums[i if mirrored else j],
                    )
                    yield

        tiles_per_block = max(1, rows * columns // max(len(blocks), 1))
        cost = tiles_per_block * (self._tile_ns(job, X.shape[1]) + job.tile**2 * 0.1 * p)
        self._run(multiply, len(blocks), cost)
        out[...] = sums.sum(axis=0)[:, :n].T
        return out

    # ------------------------------------------------------ packed storage of K
    def half_bytes(self, n: int, dtype: DTypeLike) -> int:
        return math.prod(_core.half_shape(n)) * np.dtype(dtype).itemsize + 64

    def half_gram(self, X: Array, kernel: Kernel, dtype: DTypeLike | None = None) -> Half:
        """K(X, X) packed in contiguous tiles; see :meth:`Backend.half_gram`."""
        dtype = self._half_dtype(X, dtype)
        self._check_half_kernel(kernel)
        tiles = _core.empty_aligned(_core.half_shape(X.shape[0]), dtype)
        job = self._packed(X, None, kernel, stream=tiles.nbytes >= STREAM_BYTES)
        self._run(
            lambda lo, hi: job.half_gram(lo, hi, tiles),
            job.n_tiles,
            self._tile_ns(job, X.shape[1]),
        )
        return Half(X.shape[0], tiles)

    def half_of(self, K: Array, dtype: DTypeLike | None = None) -> Half:
        """K packed in tiles; see :meth:`Backend.half_of`."""
        self._check_square(K)
        n, shape = K.shape[0], _core.half_shape(K.shape[0])
        tiles = _core.empty_aligned(shape, self._half_dtype(K, dtype))
        side, t = -(-n // shape[1]), shape[1]

        def fill(lo: int, hi: int) -> Iterator[None]:
            for i in range(lo, hi):
                first = i * (2 * side - i + 1) // 2
                for j in range(i, side):
                    block = K[i * t : (i + 1) * t, j * t : (j + 1) * t]
                    rows, columns = block.shape
                    tile = tiles[first + j - i]
                    tile[:rows, :columns] = block
                    tile[rows:] = 0
                    tile[:rows, columns:] = 0
                    if i == j:
                        tile[:rows, :rows] = np.triu(block) + np.triu(block, 1).T
                    yield

        self._run(fill, side, side / 2 * t * t * 0.5)
        return Half(n, tiles)

    def half_matmul(self, half: Half, V: Array, out: Array = None) -> Array:
        """K @ V, every tile read once; see :meth:`Backend.half_matmul`.

        It needs ``MATMUL_BLOCKS`` times the memory of the result.
        """
        out = self._half_out(half, V, out)
        n, p = V.shape
        if 0 in (n, p):
            return out
        tile = half.entries.shape[1]
        side = -(-n // tile)
        Vt = _core.empty_aligned((p, tile * side), np.float64)
        Vt[:, :n] = V.T
        Vt[:, n:] = 0
        parts = min(side, MATMUL_BLOCKS)
        sums = np.empty((parts, p, tile * side))
        blocks = parts * (parts + 1) // 2
        self._run(
            lambda lo, hi: _core.half_multiply(half.entries, n, Vt, sums, lo, hi),
            blocks,
            half.nbytes / blocks * max(0.04, 0.02 * p),
        )
        out[...] = sums.sum(axis=0)[:, :n].T
        return out

    def project_out(self, basis: Iterable[Array], W: Array) -> Array:
        """W −= W Qᵀ Q and Q Wᵀ; see :meth:`Backend.project_out`.

        Some rows of the basis at a time, which bounds the memory of their sums. BLAS is not
        used: its threads would still be spinning when those of the next product with K start.
        """
        groups: list[list[Array]] = [[]]
        for Q in basis:
            if sum(P.nbytes for P in (*groups[-1], Q)) > PROJECTED_BYTES:
                groups.append([])
            groups[-1].append(Q)
        return np.concatenate([self._project_out(group, W) for group in groups])

    def _project_out(self, group: list[Array], W: Array) -> Array:
        starts = [0, *itertools.accumulate(map(len, group))]
        units = _core.column_units(W.shape[1])
        sums = np.empty((units, starts[-1], len(W)))
        cost = 0.05 * starts[-1] * (8.0 + len(W)) * W.shape[1] / max(units, 1)

        def add(lo: int, hi: int) -> None:
            for Q, at in zip(group, starts, strict=False):
                _core.inner_products(Q, W, sums, at, lo, hi)

        self._run(add, units, cost)
        h = sums.sum(0)

        def subtract(lo: int, hi: int) -> None:
            for Q, at in zip(group, starts, strict=False):
                _core.project_out(Q, h, at, W, lo, hi)

        self._run(subtract, units, cost)
        return h

    def gram_sweep(
        self, X: Array, Z: Array, kernels: Sequence[Kernel], out: Array = None
    ) -> Iterator[Array]:
        """K(X, Z) of each kernel in turn, in ``out``; see :meth:`Backend.gram_sweep`.

        Kernels of one pair quantity share the packed rows. From ``SHARE_COLUMNS`` columns on
        they also share the distances, which take another n m reals (half that for K(X, X)).
        If these do not fit in memory, they are recomputed for each kernel.
        """
        kernels = list(kernels)
        shared = len(kernels) > 1 and len({kernel.pair for kernel in kernels}) == 1
        if not shared:
            yield from super().gram_sweep(X, Z, kernels, out)
            return
        spare = self.available_memory()
        if out is None:
            out = np.empty((X.shape[0], (X if Z is None else Z).shape[0]), dtype=X.dtype)
            spare -= out.nbytes
        elif not _writable_apart(out, X, Z):
            yield from super().gram_sweep(X, Z, kernels, out)
            return
        job = self._packed(X, Z, kernels[0], out)
        cost = self._tile_ns(job, X.shape[1])
        step = job.gram
        if X.shape[1] >= SHARE_COLUMNS and out.nbytes <= spare:
            job.keep_pairs()
            self._run(job.pairs, job.n_tiles, cost)
            step, cost = job.of_pairs, self._tile_ns(job, 0)
        for kernel in kernels:
            job.set_kernel(kernel.c_spec)
            self._run(step, job.n_tiles, cost)
            yield out

    # --------------------------------------------------------------- filters
    def shrinkage_path(self, d: Array, lam: Array, alpha: Array) -> Array:
        """diag B^(1..T); see :meth:`Backend.shrinkage_path`."""
        d, lam, alpha = _readable(d), _readable(lam), _readable(alpha)
        B = np.empty((lam.shape[0], alpha.shape[0], d.shape[0]), dtype=d.dtype)
        self._run(
            lambda lo, hi: _core.shrinkage_path(d, lam, alpha, B, lo, hi),
            _core.filter_units(d.shape[0], lam.shape[0]),
            512 * (1.0 + 0.5 * alpha.shape[0]),
        )
        return B

    def pure_filters(self, d: Array, lam: Array, n_steps: int) -> Array:
        """Pure-step filters; see :meth:`Backend.pure_filters`."""
        d, lam = _readable(d), _readable(lam)
        C = np.empty((lam.shape[0], n_steps, d.shape[0]), dtype=d.dtype)
        self._run(
            lambda lo, hi: _core.pure_filters(d, lam, C, lo, hi),
            _core.filter_units(d.shape[0], lam.shape[0]),
            512 * (1.0 + 0.5 * n_steps),
        )
        return C


def _writable_apart(out: np.ndarray, *inputs: np.ndarray | None) -> bool:
    """Whether the loops may write ``out`` while they read the inputs."""
    return bool(
        out.flags.c_contiguous
        and out.flags.aligned
        and out.flags.writeable
        and all(out.dtype == a.dtype for a in inputs if a is not None)
        and not any(np.may_share_memory(out, a) for a in inputs if a is not None)
    )


def _cut(count: int, parts: int) -> list[int]:
    """Boundaries of at most ``parts`` nearly equal parts of ``range(count)``."""
    parts = max(1, min(parts, count))
    return [count * part // parts for part in range(parts + 1)]
