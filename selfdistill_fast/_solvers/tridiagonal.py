"""A grid of λ values without eigenvectors: K = Q T Qᵀ with T tridiagonal.

The reduction is the first half of an eigendecomposition, and the cheaper one. Each λ and step
then costs one tridiagonal solve, O(n):

    C_τ = (T + λI)⁻¹ t_(τ−1),   t_τ = A t_(τ−1) = t_(τ−1) − λ C_τ  or  T C_τ,   t_0 = Qᵀt,

The first formula is used where λ is below ‖T‖ and the second above it, so that neither cancels.
The coordinates are C, k = n; the weighted dual coefficients are Q C. Q is stored as its
reflectors. Diagonals of functions of K are not available, so there is no leave-one-out.

With an intercept, q is moved to the eigenvalue trace(K)/n, as in cholesky.py; t ⟂ q.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.evaluation import NoLimit, check_values, one_product
from selfdistill_fast._solvers.penalties import Penalties
from selfdistill_fast._solvers.problem import Problem, Rates, Request, TrainingSet, Unsuitable, Work
from selfdistill_fast._validation import check_coefficients, check_lam, largest

__all__ = ["TridiagonalSpectrum"]


class TridiagonalSpectrum(Spectrum):
    """Tridiagonal form of a kernel matrix; made by :func:`~selfdistill_fast.spectrum`."""

    name = "tridiagonal"
    max_loo_steps = 0
    successors = ("eigh",)

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """4/3 n³ flops; K and its reflectors."""
        n, n3 = problem.n, float(problem.n) ** 3
        return Work(
            bytes=problem.backend.tridiagonal_bytes(n, problem.dtype) + problem.rows_bytes,
            flops=4.0 / 3.0 * n3,
            seconds=problem.matrix_seconds(rates)
            + 4.0 / 3.0 * n3 * rates.tridiagonal
            + problem.finish_seconds(rates),
        )

    def __init__(self, training: TrainingSet, request: Request) -> None:
        be = training.backend
        needed = be.tridiagonal_bytes(training.n_kept, training.dtype)
        self._prepare(training, request, needed=needed)
        K = self._kernel_matrix(training.X, shift=1.0)
        if request.automatic and request.lam is not None and request.lam.min() < self.rounding:
            raise Unsuitable
        self.k = K.shape[0]
        self._diagonal, self._off, self._reflectors = be.tridiagonalise(K)
        self._rotated = be.tridiagonal_rotate(self._reflectors, self.target, transpose=True)

    def warn_below_rounding(self, lam: Any) -> None:
        """Also warn of unequal weights."""
        super().warn_below_rounding(lam)
        self._warn_of_unequal_weights(lam)

    # ------------------------------------------------------------ new points
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points: κ(x, X) W^½ Q, centred with an intercept, (m, n)."""
        xp, be = self.backend.xp, self.backend
        P = xp.ascontiguousarray(self._weighted_gram(X_new).T)
        P = be.tridiagonal_rotate(self._reflectors, P, transpose=True).T
        P = P if self._offset is None else P - self._offset_of_basis()
        return check_values(self.backend, P, self.kernel, "projections")

    def _offset_of_basis(self) -> Any:
        r = self._offset.astype(self.dtype)[:, None]
        return self.backend.tridiagonal_rotate(self._reflectors, r, transpose=True)[:, 0]

    def in_rows(self, coordinates: Any) -> Any:
        """Q @ coordinates for coordinates (..., n, p), one product for all."""
        be, Q, dtype = self.backend, self._reflectors, self.dtype
        return one_product(lambda a: be.tridiagonal_rotate(Q, a.astype(dtype)), coordinates, be.xp)

    # --------------------------------------------------------------- filters
    def _steps(self, penalties: Penalties) -> Any:
        """Coordinates (T + λ)⁻¹ A^(τ−1) t_0 of the pure steps, (T, n, p).

        Raises
        ------
        numpy.linalg.LinAlgError
            K + λI is not positive definite.
        """
        xp, T = self.backend.xp, penalties.n_steps
        if penalties.scheduled:
            steps = xp.zeros((T, T, *self._rotated.shape), self.dtype)
            for start in range(T):
                t = self._rotated
                for j in range(start, T):
                    step, t = self._solved(penalties.at(j), 1, t)
                    steps[j, j - start] = step[0]
            return steps
        lams = penalties.values.reshape(-1)
        every = [self._solved(float(lam), T, self._rotated)[0] for lam in lams]
        return xp.stack(every) if penalties.is_batch else every[0]

    def _solved(self, lam: float, n_steps: int, t: Any) -> tuple[Any, Any]:
        """Coordinates (T, n, p) of the pure steps from t, and A^T t."""
        xp = self.backend.xp
        check_lam(lam, batch=False, dtype=self.dtype)
        steps, last = self.backend.tridiagonal_steps(self._diagonal, self._off, lam, t, n_steps)
        if not bool(xp.isfinite(steps).all()):
            if not largest(abs(t)) / lam <= float(np.finfo(self.dtype).max):
                check_coefficients(steps)
            raise LinAlgError(
                f"K + lam I is not positive definite at lam={lam:g}: K is not positive "
                "semi-definite, or lam is below its round-off; use a larger lam, or "
                "solver='eigh', which reports the eigenvalue"
            )
        return steps, last

    def limit(self, lam: float, alpha: float) -> Any:
        """Coordinates (T + λ/α)⁻¹ t_0 of infinitely many steps, eq. (17), (n, p).

        Raises
        ------
        NoLimit
            α is outside [0, 2], where the limit depends on eigenvalues that are not known here.
        """
        if not 0.0 <= alpha <= 2.0:
            raise NoLimit(
                f"whether infinitely many steps have a limit at alpha={alpha:g} depends on the "
                "eigenvalues, and solver='tridiagonal' does not compute them; use solver='eigh'"
            )
        if alpha == 0.0 or math.isinf(lam / alpha):
            return self.backend.xp.zeros_like(self._rotated)
        return self._solved(lam / alpha, 1, self._rotated)[0][0]
