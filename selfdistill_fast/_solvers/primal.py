"""The exact chain in feature space: K = X Xᵀ for rows X of D features, without K.

The features of :mod:`~selfdistill_fast._solvers.feature_space` are the rows themselves, or what a
:class:`~selfdistill_fast.kernels.Features` kernel has made of them. The model is linear,

    f(x) = x·u + ȳ − μ·u,   u = G D^½ (coordinates)   (D, p),

so that u is β of eq. (3). The basis is the identity: κ(x, e_j) = x_j, and u are its dual
coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._backend.threads import n_threads_now
from selfdistill_fast._solvers.feature_space import FeatureSpectrum, Sums, block_rows
from selfdistill_fast._solvers.matrix import overflow, underflow
from selfdistill_fast._solvers.problem import Problem, Rates, Request, TrainingSet, Work
from selfdistill_fast._validation import check_n_steps, warn_caller
from selfdistill_fast.kernels import Kernel, Linear

__all__ = ["PrimalOptions", "PrimalSpectrum"]

#: relative error of predictions, caused by features far from 0, that gives no warning
_LOST_BY_OFFSET = 1e-3
#: bytes that the C library keeps of blocks that were freed, and that BLAS packs blocks into on
#: each of its threads
_RESERVE, _PACKED = 16 << 20, 16 << 20


@dataclass(frozen=True)
class PrimalOptions:
    """Options of "primal"; see :func:`~selfdistill_fast.spectrum`."""

    block: Any = None

    def __post_init__(self) -> None:
        if self.block is not None:
            check_n_steps(self.block, "block")


class PrimalSpectrum(FeatureSpectrum):
    """Spectrum of XᵀWX; made by :func:`~selfdistill_fast.spectrum`.

    Attributes
    ----------
    X : the training rows, see :class:`~selfdistill_fast._solvers.sources.Rows`
    basis : (D, D) the identity
    """

    name = "primal"
    Options = PrimalOptions
    memory_hint = "fewer features"
    pairwise = True
    exact_features = True

    @classmethod
    def serves(cls, problem: Problem) -> str | None:
        """Kernels whose features are the rows."""
        return None if isinstance(problem.kernel, Linear) else "needs Linear() or Features(...)"

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """n D² flops in one pass over the rows, and 9 D³."""
        n, d, p = problem.n, problem.d, problem.p
        d3, columns = float(d) ** 3, 0.0
        if problem.leave_one_out:  # V, and the columns of E, F and two diagonals
            columns = 2.0 * d + 4.0 * problem.n_lams * problem.n_steps * (1.0 + p)
        return Work(
            bytes=_bytes(problem.backend, n, d, p, problem.dtype),
            flops=1.0 * n * d * d + 9.0 * d3,
            seconds=n * d * (d + columns) * rates.gemm
            + 2.0 * n * d * problem.dtype.itemsize * rates.byte
            + 9.0 * d3 * rates.eigh,
        )

    def __init__(self, training: TrainingSet, request: Request) -> None:
        be, kernel = training.backend, training.kernel
        if not isinstance(kernel, Linear):
            raise ValueError(
                f"solver='primal' needs the features of a row: kernel Linear(), or "
                f"Features(function) for a feature map of your own; got {kernel!r}"
            )
        n, d = training.X.shape
        self.block = min(block_rows(request.options.block, d), n)
        needed = _bytes(
            be,
            n,
            d,
            training.p,
            training.dtype,
            streaming=training.X.streaming,
            block=request.options.block,
        )
        self._prepare(training, request, needed=needed)
        self.basis = be.xp.eye(d, dtype=self.dtype)
        features = RowFeatures(be, kernel)
        first = be.xp.arange(self.block) if self.rows is None else self.rows[: self.block]
        middle = features(self.X[first]).mean(0) if self.fit_intercept else None
        S, b, mean, traces, middle = self._sums(RowSums, features, middle)
        squares, sizes = float(traces[0]), float(traces[1])
        if not squares <= float(np.finfo(self.dtype).max):
            raise overflow(kernel, self.dtype)
        if squares < float(np.finfo(self.dtype).tiny) and sizes > 0.0:
            raise underflow(kernel, self.dtype)
        self._decompose(features, S, b, mean, middle)

    def warn_below_rounding(self, lam: Any) -> None:
        """Also warn where x·u and μ·u are so large that their difference has few digits.

        ‖u‖ is at most ‖t‖/(2√λ), so it loses ε ‖μ‖ ‖t‖/√λ.
        """
        super().warn_below_rounding(lam)
        smallest = float(np.min(lam))
        error = float(np.finfo(self.dtype).eps) * (self._away / smallest) ** 0.5
        if error > _LOST_BY_OFFSET and smallest >= 10.0 * self.rounding:
            warn_caller(
                f"the features are so far from 0 that predictions lose digits in {self.dtype} at "
                f"lam={smallest:g}: the relative error may reach {min(error, 1.0):.2g}; subtract "
                "their means" + (", or use float64" if self.dtype == np.float32 else ""),
                RuntimeWarning,
            )

    def dual(self, coordinates: Any) -> Any:
        """Coefficients u of the features, (…, D, p)."""
        return self._in_features(coordinates).astype(self.dtype)


class RowFeatures:
    """The rows themselves as features, in float64."""

    def __init__(self, be: Any, kernel: Kernel) -> None:
        self.backend, self.kernel = be, kernel

    def __call__(self, X: Any) -> Any:
        """A copy of the rows X."""
        return X.astype("float64")

    def alone(self) -> RowFeatures:
        """The same for a worker: one thread."""
        return RowFeatures(type(self.backend)(n_threads=1), self.kernel)


class RowSums(Sums):
    """Also Σ ‖x‖² and Σ ‖x‖₁ of the retained rows, which tell underflow from zero rows."""

    def traces(self, X: Any, phi: Any, root: Any) -> Any:
        """Both sums."""
        xp = self.features.backend.xp
        phi = phi if root is None else phi[root > 0]
        return xp.stack([xp.einsum("ij,ij->", phi, phi), abs(phi).sum()])


def _bytes(
    be: Any, n: int, d: int, p: int, dtype: Any, *, streaming: bool = False, block: Any = None
) -> int:
    """Peak bytes of the factorisation, beside the caller's X and Y."""
    size, rows = np.dtype(dtype).itemsize, min(n, block_rows(block, d))
    held = (0 if streaming else n * d * size) + n * (p * (24 + 2 * size) + 8) + d * d * size
    sums = max(1, math.ceil(n / rows)).bit_length() + 2
    one_pass = 8 * sums * d * d + rows * (24 * d + (2 * d * size if streaming else 0) + 8 * p)
    solve = 8 * d * d + be.eigh_bytes(d, np.float64)
    return int(_RESERVE + _PACKED * n_threads_now() + held + max(one_pass, solve))
