"""The CPU backend: SciPy's LAPACK, and the C loops of ``_core`` for everything else.

It overrides the verbs of the reference backend; their docstrings hold. Native arrays are
NumPy arrays. Results of our own loops have the same bits for any number of threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from selfdistill_fast import _core
from selfdistill_fast._backend import blocked, threads
from selfdistill_fast._backend.reference import Half, Reference
from selfdistill_fast.kernels import Kernel

__all__ = ["Cpu"]

#: bytes from which ``out`` is written past the caches: what no cache holds anyway
STREAM_BYTES = 16 << 20
#: columns of X from which kernels that share a distance read it from memory rather than
#: compute it again
SHARE_COLUMNS = 64
#: order up to which the workspace of LAPACK's ``evd`` fits its 32-bit integers
EVD_ROWS = 32_000
#: row and column blocks of ``gram_matmul``: bounds its memory to this many times that of
#: the result, in double
MATMUL_BLOCKS = 12
#: bytes of a basis that a pass of Gram-Schmidt takes at a time
PROJECTED_BYTES = 16 << 20
#: targets up to which the symmetry of K(X, X) is used in a product
MATMUL_MIRRORED = 32


def _readable(a: np.ndarray) -> np.ndarray:
    """``a`` itself where the loops can read it, else a copy."""
    return np.require(a, requirements=["C", "A"])


class Cpu(Reference):
    """Verbs of a backend on the processor.

    Parameters
    ----------
    n_threads : int, optional
        Threads for this library's own loops; None honours OMP_NUM_THREADS, the affinity
        of the process and its cgroup quota. LAPACK and BLAS have their own setting.
    """

    name = "cpu"

    def __init__(self, n_threads: int | None = None) -> None:
        super().__init__(threads.check_n_threads(n_threads))

    def _run(self, function: Any, count: int, cost_ns: float) -> None:
        threads.run(function, count, cost_ns, self.n_threads)

    # --------------------------------------------------------------- kernels
    def _packed(
        self, X: Any, Z: Any, kernel: Kernel, out: Any = None, *, stream: bool = False
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

    def gram(self, X: Any, Z: Any, kernel: Kernel, out: Any = None) -> Any:
        """K(X, Z), each tile of K(X, X) computed once; see :meth:`Reference.gram`.

        In float32 the pair quantities are float32: K is good to about 1e-5 of its largest entry.
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

    def gram_matmul(self, X: Any, Z: Any, W: Any, kernel: Kernel, out: Any = None) -> Any:
        """K(X, Z) @ W with K never formed; see :meth:`Reference.gram_matmul`.

        Sums are in double across tiles, also in float32, and all of them where W is float64.
        Besides the rows in packed form it takes up to ``MATMUL_BLOCKS`` times the memory of the
        result, in double.
        """
        n, p = X.shape[0], W.shape[1]
        m = (X if Z is None else Z).shape[0]
        if W.shape[0] != m:
            raise ValueError(f"W has {W.shape[0]} rows but K has {m} columns; they must agree")
        if W.dtype not in (X.dtype, np.float64):
            raise TypeError(f"X is {X.dtype} but W is {W.dtype}; W must be that or float64")
        if out is None:
            out = np.empty((n, p), dtype=W.dtype)
        elif out.shape != (n, p) or out.dtype != W.dtype:
            raise ValueError(
                f"out must be {W.dtype} of shape {(n, p)}, got {out.dtype} of shape {out.shape}"
            )
        if 0 in (n, m, p):
            out[...] = 0
            return out
        mirrored = Z is None and p <= MATMUL_MIRRORED
        job = self._packed(X, Z if Z is not None or mirrored else X, kernel)
        rows, columns = job.tile_grid

        # Blocks of tiles: their number follows from the sizes alone. Each column block has
        # its own sums, added up in order at the end, whichever thread made them.
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

    # ------------------------------------------------------ half of K, kept
    def half_bytes(self, n: int, dtype: Any) -> int:
        return math.prod(_core.half_shape(n)) * np.dtype(dtype).itemsize + 64

    def half_gram(self, X: Any, kernel: Kernel, dtype: Any = None) -> Half:
        """Half of K(X, X) in tiles, each contiguous; see :meth:`Reference.half_gram`."""
        dtype = self._half_dtype(X, dtype)
        if not kernel.pair:
            raise TypeError(
                f"{kernel!r} is not computed by the backend: pass its matrix to half_of"
            )
        tiles = _core.empty_aligned(_core.half_shape(X.shape[0]), dtype)
        job = self._packed(X, None, kernel, stream=tiles.nbytes >= STREAM_BYTES)
        self._run(
            lambda lo, hi: job.half_gram(lo, hi, tiles),
            job.n_tiles,
            self._tile_ns(job, X.shape[1]),
        )
        return Half(X.shape[0], tiles)

    def half_of(self, K: Any, dtype: Any = None) -> Half:
        """Half of K in tiles; see :meth:`Reference.half_of`."""
        if K.ndim != 2 or K.shape[0] != K.shape[1]:
            raise ValueError(f"K must be square, got shape {K.shape}")
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

    def half_matmul(self, half: Half, V: Any, out: Any = None) -> Any:
        """K @ V, every tile read once; see :meth:`Reference.half_matmul`.

        It takes ``MATMUL_BLOCKS`` times the memory of the result.
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

    def project_out(self, basis: Iterable[Any], W: Any) -> Any:
        """W −= W Qᵀ Q and Q Wᵀ; see :meth:`Reference.project_out`.

        Some rows of the basis at a time, which bounds the memory of their sums. BLAS is not
        asked: its threads would still spin when those of the next product with K begin.
        """
        groups: list[list[Any]] = [[]]
        for Q in basis:
            if sum(P.nbytes for P in (*groups[-1], Q)) > PROJECTED_BYTES:
                groups.append([])
            groups[-1].append(Q)
        return np.concatenate([self._project_out(group, W) for group in groups])

    def _project_out(self, group: list[Any], W: Any) -> Any:
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
        self, X: Any, Z: Any, kernels: Sequence[Kernel], out: Any = None
    ) -> Iterator[Any]:
        """K(X, Z) of each kernel in turn, in ``out``; see :meth:`Reference.gram_sweep`.

        Kernels of one pair quantity share the packed rows; from ``SHARE_COLUMNS`` columns on
        they share the distances too, which take another n m reals (half of it for K(X, X)).
        Where these do not fit in memory, they are computed anew for each kernel.
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

    # -------------------------------------------------------- linear algebra
    # A C-ordered symmetric K is K.T in Fortran order: LAPACK works in its buffer.
    def eigh_bytes(self, n: int, dtype: Any) -> int:
        return (3 if n <= EVD_ROWS else 2) * n * n * np.dtype(dtype).itemsize

    def cholesky_bytes(self, n: int, dtype: Any) -> int:
        return n * (n + 2048) * np.dtype(dtype).itemsize  # K, L and M share a buffer

    def cholesky(self, K: Any) -> Any:
        return blocked.cholesky(np.require(K, requirements=["C", "A", "W"]))

    def cholesky_solve(self, L: Any, B: Any) -> Any:
        if L.shape[0] == 0:  # LAPACK's wrapper takes no empty array
            return B.copy()
        from scipy.linalg import get_lapack_funcs

        (potrs,) = get_lapack_funcs(("potrs",), (L,))
        X, _ = potrs(L.T, B, lower=0)
        return X

    def cholesky_inverse(self, L: Any) -> Any:
        return blocked.cholesky_inverse(np.require(L, requirements=["C", "A", "W"]))

    def eigh(self, K: Any) -> tuple[Any, Any]:
        """As the reference; V is Fortran-ordered and takes the place of K.

        Divide and conquer (``evd``) is the fastest driver and the most orthogonal, and works
        in place with 2 n² reals of workspace: 3 n² in all. Its workspace does not fit LAPACK's
        32-bit integers beyond n = 32,000; there ``evr`` is used, 2 n² in all.
        """
        from scipy.linalg import eigh

        n = K.shape[0]
        if n == 0:
            return np.empty(0, K.dtype), np.empty((0, 0), K.dtype)
        driver = "evd" if n <= EVD_ROWS else "evr"
        return eigh(K.T, overwrite_a=True, check_finite=False, driver=driver)

    def triangular_solve(self, R: Any, B: Any, *, lower: bool) -> Any:
        from scipy.linalg import solve_triangular

        return solve_triangular(R, B, lower=lower, check_finite=False)

    def svd(self, A: Any) -> tuple[Any, Any, Any]:
        from scipy.linalg import svd

        return svd(A, full_matrices=False, overwrite_a=True, check_finite=False)

    def tridiagonal_bytes(self, n: int, dtype: Any) -> int:
        return n * (2 * n + 256) * np.dtype(dtype).itemsize  # K, and Q's reflectors apart from it

    def tridiagonalise(self, K: Any) -> tuple[Any, Any, Any]:
        from scipy.linalg import get_lapack_funcs

        n = K.shape[0]
        if n < 2:
            return np.diagonal(K).copy(), np.empty(0, K.dtype), None
        sytrd, sytrd_lwork = get_lapack_funcs(("sytrd", "sytrd_lwork"), (K,))
        lwork = int(sytrd_lwork(n, lower=1)[0])
        c, d, e, tau, _ = sytrd(K.T, lower=1, lwork=lwork, overwrite_a=1)
        # reflectors below the subdiagonal are those of a QR of rows and columns 1..n − 1
        return d, e, (np.asfortranarray(c[1:, :-1]), tau)

    def tridiagonal_rotate(self, Q: Any, B: Any, *, transpose: bool = False) -> Any:
        from scipy.linalg import get_lapack_funcs

        out = np.array(B, order="F")
        if Q is None or B.shape[1] == 0:
            return out
        reflectors, tau = Q
        # LAPACK's unblocked code writes ones into the reflectors for a while, which other threads
        # may read: it is used up to order 64, and where the workspace is short
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
        self, d: Any, e: Any, lam: float, t: Any, n_steps: int
    ) -> tuple[Any, Any]:
        from scipy.linalg.lapack import dpttrf, dpttrs

        d, e, current = d.astype(np.float64), e.astype(np.float64), t.astype(np.float64)
        steps = np.full((n_steps, *t.shape), np.nan)
        radius = np.zeros(len(d))
        radius[:-1] += abs(e)
        radius[1:] += abs(e)
        strong = lam > (abs(d) + radius).max(initial=0.0)
        # the wrappers take no empty off-diagonal: of order 1 it is not read
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

    # --------------------------------------------------------------- filters
    def shrinkage_path(self, d: Any, lam: Any, alpha: Any) -> Any:
        """diag B^(1..T); see :meth:`Reference.shrinkage_path`."""
        d, lam, alpha = _readable(d), _readable(lam), _readable(alpha)
        B = np.empty((lam.shape[0], alpha.shape[0], d.shape[0]), dtype=d.dtype)
        self._run(
            lambda lo, hi: _core.shrinkage_path(d, lam, alpha, B, lo, hi),
            _core.filter_units(d.shape[0], lam.shape[0]),
            512 * (1.0 + 0.5 * alpha.shape[0]),
        )
        return B

    def pure_filters(self, d: Any, lam: Any, n_steps: int) -> Any:
        """Pure-step filters; see :meth:`Reference.pure_filters`."""
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
