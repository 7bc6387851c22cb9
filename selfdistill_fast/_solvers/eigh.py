"""Exact spectra: one symmetric eigendecomposition serves every λ, α and step.

K_w = V D Vᵀ (base.py), or with an intercept H K_w H = V D Vᵀ with V ⟂ q. With U = W^½ V and
z = Vᵀ t the basis functions are project(x) = κ(x, X) U − Vᵀr, and

    F_τ(x) = ȳ + project(x) C z,   C = (D + λI)⁻¹ A^(τ−1),   A = D (D + λI)⁻¹.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.evaluation import check_values, one_product
from selfdistill_fast._solvers.fold import Fold
from selfdistill_fast._solvers.problem import Problem, Rates, Request, TrainingSet, Work
from selfdistill_fast._solvers.spectral import Filters
from selfdistill_fast._validation import largest, warn_caller
from selfdistill_fast.kernels import Kernel

__all__ = ["EighSpectrum"]

#: rows of V processed by one step of a blocked O(n²) pass
_BLOCK = 256
#: change of a prediction, relative to max |y|, below which removing a negative eigenvalue gives
#: no warning
_MOVED = 1e-4


class EighSpectrum(Spectrum):
    """Full eigendecomposition of a kernel matrix; made by :func:`~selfdistill_fast.spectrum`."""

    #: eigenvalues, from the first, that may be rounding errors only; 0 where λ is that small too
    unknown: int = 0
    #: the computed values of eigenvalues that were set to 0
    _negative: Any = ()

    name = "eigh"

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """9 n³ flops; K and V in full."""
        n, n3 = problem.n, float(problem.n) ** 3
        held_out = (
            2.0 * n * n * problem.n_lams * problem.n_steps * (1 + problem.p) * rates.gemm
            if problem.leave_one_out
            else 0.0
        )
        return Work(
            bytes=problem.backend.eigh_bytes(n, problem.dtype) + problem.rows_bytes,
            flops=9.0 * n3,
            seconds=problem.matrix_seconds(rates)
            + 9.0 * n3 * rates.eigh
            + problem.finish_seconds(rates)
            + held_out,
        )

    def __init__(self, training: TrainingSet, request: Request) -> None:
        be, fit_intercept = training.backend, training.fit_intercept
        needed = be.eigh_bytes(training.n_kept, training.dtype)
        self._prepare(training, request, needed=needed)
        # q below every eigenvalue of a positive semi-definite matrix
        d, V = be.eigh(self._kernel_matrix(training.X, shift=-1.0))
        if fit_intercept:
            d, V = _without(d, V, self.q, be.xp)
            if self.scale == 0.0:
                d[:] = 0.0  # K = 0, and the rest is rounding of the shift
        # ‖K‖ <= ‖H K H‖ + qᵀKq for a positive semi-definite K
        along = float(self.q @ self._offset) * self.total_weight**0.5 if fit_intercept else 0.0
        self.scale = min(self.scale, largest(abs(d)) + abs(along))
        clamped = clamp(d, self.kernel, be.xp, self.rounding, len(self.target))
        self._negative = d[: int((d < 0.0).sum())].astype("float64")
        self.unknown = int((clamped <= self.rounding).sum())
        self.V, self.k = V, int(d.shape[0])
        z = V.T @ self.target
        self.filters = Filters(be, clamped, z, self.dtype, self.unknown, self.rounding)

    # ------------------------------------------------------------ new points
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): κ(x, X) W^½ V, centred with an intercept."""
        P = self._weighted_gram(X_new) @ self.V
        P = P if self._offset is None else P - self._offset_of_basis()
        return check_values(self.backend, P, self.kernel, "projections")

    def _offset_of_basis(self) -> Any:
        return self.V.T @ self._offset.astype(self.dtype)

    def in_rows(self, coordinates: Any) -> Any:
        """V @ coordinates for coordinates (..., k, p), one product for all."""
        return one_product(lambda a: self.V @ a, coordinates, self.backend.xp)

    def diagonals(self, filters: Any) -> Any:
        """diag(V f Vᵀ) of the retained rows: filters (…, k) → (…, n), one product for all."""
        lead = filters.shape[:-1]
        F = filters.reshape(math.prod(lead), self.k).T
        return self.backend.squares_matmul(self.V, F).T.reshape(*lead, self.V.shape[0])

    def fold(self, rows: Any) -> Fold:
        """A set S of retained rows to leave out."""
        return _EighFold(self, rows)

    # --------------------------------------------------------------- helpers
    def warn_below_rounding(self, lam: Any) -> None:
        """Also warn of unequal weights, and of negative eigenvalues that were set to 0."""
        super().warn_below_rounding(lam)
        self._warn_of_unequal_weights(lam)
        count, smallest = len(self._negative), float(np.min(lam))
        if count == 0 or self.kernel.definite:
            return
        xp, negative = self.backend.xp, self._negative[:, None]
        share = negative / xp.maximum(smallest + negative, 1e-2 * smallest) * self.z[:count]
        moved = self.unweighted(self.V[:, :count] @ share.astype(self.dtype))
        size = xp.maximum(abs(self.kept(self.Y)).max(0), xp.finfo(self.dtype).tiny)
        change = largest(abs(moved).max(0) / size)
        if change > _MOVED:
            warn_caller(
                f"K has negative eigenvalues down to {float(negative[0, 0]):.3g} (the norm of K is "
                f"{self.scale:.3g}), which were set to 0: at lam={smallest:g} that moves a "
                f"prediction by {change:.2g} of max |y|; compute K in float64, use a positive "
                f"semi-definite kernel, or a larger lam",
                RuntimeWarning,
            )


class _EighFold(Fold):
    """Blocks V_S f V_Sᵀ; a correction is stored as V_Sᵀ δ."""

    def __init__(self, spectrum: EighSpectrum, rows: Any) -> None:
        super().__init__(spectrum, rows)
        self.V = spectrum.V[rows]

    def solver(self, lam: float, filter_: Any) -> Callable[[Any], Any]:
        """By factorising the block, or the kernel matrix of the rows T outside S.

        The block costs 2|S|²k + |S|³/3 flops. A refit without S costs |T|³/3, because its kernel
        matrix is recomputed from the rows, and gives the same result (Schur complement):

            [(I − A)_SS]⁻¹ = I + (K_SS − K_ST (K_TT + λI)⁻¹ K_TS) / λ.

        The refit is cheaper for two folds, and for a group of more than half of the rows.
        """
        s, be, size = self.spectrum, self.spectrum.backend, len(self.rows)
        n = len(s.target)
        refit = (n - size) ** 3 / 3.0 < 2.0 * size**2 * s.k + size**3 / 3.0
        if not refit or s.q is not None or not s.kernel.pair:
            L = be.cholesky((self.V * filter_) @ self.V.T)
            return lambda r: be.cholesky_solve(L, r)
        outside = be.xp.ones(n, bool)
        outside[self.rows] = False
        L = be.cholesky(s.regularised_gram(outside, lam))
        V_T, d = s.V[outside], s.d[:, None]

        def solve(r: Any) -> Any:
            along = d / be.xp.asarray(lam, r.dtype) * (self.V.T @ r)  # d r may overflow
            inner = be.cholesky_solve(L, V_T @ along)
            return r + self.V @ (along - d * (V_T.T @ inner))

        return solve

    def push(self, delta: Any) -> Any:
        """V_Sᵀ δ, (k, p)."""
        return self.V.T @ delta

    def apply(self, filters: list[Any], handles: list[Any]) -> Any:
        """V_S Σ_s f_s V_Sᵀ δ_s."""
        return self.V @ self.coordinates(filters, handles)

    def coordinates(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s V_Sᵀ δ_s."""
        return sum(f[:, None] * h for f, h in zip(filters, handles, strict=True))


def clamp(d: Any, kernel: Kernel, xp: Any, rounding: float, n: int) -> Any:
    """Eigenvalues with negative rounding errors set to 0: the only place where that is done.

    Raises
    ------
    numpy.linalg.LinAlgError
        One is clearly below rounding and the kernel is not definite by construction.
    """
    if d.shape[0] == 0:
        return d
    lowest = float(d[0])
    if not kernel.definite and lowest < -(n**0.5) * rounding:
        raise LinAlgError(
            f"K is not positive semi-definite: its smallest eigenvalue is {lowest:g} (the largest "
            f"is {float(d[-1]):g}), far below rounding; use a positive semi-definite kernel, or "
            f"add at least {-lowest:g} to the diagonal of K"
        )
    return xp.maximum(d, 0.0).astype(d.dtype)


def _without(d: Any, V: Any, q: Any, xp: Any) -> tuple[Any, Any]:
    """Eigenpairs without q, which was moved below all others; V (n, n − 1) with Vᵀq = 0."""
    qt = q.astype(V.dtype)
    along = qt @ V
    if len(d) > 1 and int(abs(along).argmax()) != 0:  # only an indefinite K has anything below q
        raise LinAlgError(
            f"K is not positive semi-definite: centred, it has the eigenvalue {float(d[0]):g}"
        )
    d, V, along = d[1:], V[:, 1:], along[1:]
    length = xp.sqrt(1.0 - along**2)
    for start in range(0, V.shape[0], _BLOCK):  # V ⟂ q to the last digit, and of length 1
        rows = slice(start, start + _BLOCK)
        V[rows] -= qt[rows, None] * along[None, :]
        V[rows] /= length
    return d, V
