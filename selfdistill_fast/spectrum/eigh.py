"""Exact spectra: one symmetric eigendecomposition serves every λ, α and step.

K_w = V D Vᵀ (base.py), or with an intercept H K_w H = V D Vᵀ with V ⟂ q. With U = W^½ V and
z = Vᵀ t the basis functions are project(x) = κ(x, X) U − Vᵀr, and

    F_τ(x) = ȳ + project(x) C z,   C = (D + λI)⁻¹ A^(τ−1),   A = D (D + λI)⁻¹.

A filter is held as its values on the eigenvalues, (k,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast.alpha import warn_caller
from selfdistill_fast.kernels import Kernel
from selfdistill_fast.spectrum.base import (
    Fold,
    Spectrum,
    check_coefficients,
    check_lam,
    check_limit,
    check_n_steps,
    largest,
    mix,
)
from selfdistill_fast.spectrum.problem import Problem, Rates, Request, TrainingSet, Work

__all__ = ["EighSpectrum"]

#: rows of V that one step of a blocked O(n²) pass touches
_BLOCK = 256
#: change of a prediction, relative to max |y|, that removing a negative eigenvalue may cause in
#: silence
_MOVED = 1e-4


class EighSpectrum(Spectrum):
    """Full eigendecomposition of a kernel matrix; made by :func:`~selfdistill_fast.spectrum`."""

    d: Any
    z: Any
    #: eigenvalues, from the first, that may be rounding alone, and are 0 where λ may be, too
    unknown: int = 0
    #: eigenvalues as they were computed, where they have been set to 0
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
        self._prepare(training, request.max_memory, needed=needed)
        # q below every eigenvalue of a positive semi-definite matrix
        d, V = be.eigh(self._kernel_matrix(training.X, shift=-1.0))
        if fit_intercept:
            d, V = _without(d, V, self.q, be.xp)
        # ‖K‖ <= ‖H K H‖ + qᵀKq for a positive semi-definite K
        along = float(self.q @ self._offset) * self.total_weight**0.5 if fit_intercept else 0.0
        self.scale = min(self.scale, largest(abs(d)) + abs(along))
        self.d = _clamped(d, self.kernel, be.xp, self.rounding, len(self.target))
        self._negative = d[: int((d < 0.0).sum())].astype("float64")
        self.unknown = int((self.d <= self.rounding).sum())
        self.V, self.k = V, int(self.d.shape[0])
        self.z = V.T @ self.target

    # ------------------------------------------------------------ new points
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): κ(x, X) W^½ V, centred with an intercept.

        Parameters
        ----------
        X_new : array_like of shape (m, d)
            With a precomputed kernel K(X_new, X), (m, n).
        """
        P = self._weighted_gram(X_new) @ self.V
        return P if self._offset is None else P - self._offset_of_basis()

    def _offset_of_basis(self) -> Any:
        return self.V.T @ self._offset.astype(self.dtype)

    def in_rows(self, coordinates: Any) -> Any:
        """V @ coordinates for coordinates (..., k, p), one product for all."""
        xp = self.backend.xp
        lead, p = coordinates.shape[:-2], coordinates.shape[-1]
        S = math.prod(lead)
        flat = xp.moveaxis(coordinates.reshape(S, self.k, p), 0, 1).reshape(self.k, S * p)
        product = (self.V @ flat).reshape(self.V.shape[0], S, p)
        return xp.moveaxis(product, 1, 0).reshape(*lead, self.V.shape[0], p)

    # --------------------------------------------------------------- filters
    def pure_steps(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Coordinates a^(τ−1)/(d + λ) z of the pure steps.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T
        lam_steps : array of shape (T,), optional
            A ridge for each step; ``lam`` is not used then.

        Returns
        -------
        ndarray of shape (T, k, p), or (L, T, k, p) for a batch; for a schedule
        (T, T, k, p), where [τ − 1, i − 1] is the pure chain of the last i of the steps 1..τ
        """
        steps = self.pure_filters(lam, n_steps, lam_steps)[..., None] * self.z
        return check_coefficients(steps)

    def pure_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Filters a^(τ−1)/(d + λ) of the pure steps; d times them is diag A^τ.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T
        lam_steps : array of shape (T,), optional
            A ridge for each step; ``lam`` is not used then.

        Returns
        -------
        ndarray of shape (T, k), or (L, T, k) for a batch; for a schedule (T, T, k), where
        [τ − 1, i − 1] is the pure chain of the last i of the steps 1..τ
        """
        if lam_steps is not None:
            W = self._windows(lam_steps)
            C = self.backend.xp.zeros_like(W)
            for j in range(len(W)):
                C[j, : j + 1] = W[j, j::-1]
            return C
        lam = check_lam(lam, batch=True, dtype=self.dtype)
        lams = lam.reshape(-1)
        C = self.backend.pure_filters(self.d, lams, check_n_steps(n_steps))
        for i in np.flatnonzero(lams < self.rounding) if self.unknown else ():
            C[int(i), :, : self.unknown] = 0.0  # every prediction is 0 there
        return C if lam.ndim else C[0]

    def residual_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Filters of (I − A) A^(τ−1), or of (I − A_j) A_(j−1) … A_s under a ridge for each step.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T
        lam_steps : array of shape (T,), optional
            The schedule; ``lam`` is not used then.

        Returns
        -------
        ndarray of shape (T, k), or (L, T, k) for a batch: λ a^(τ−1)/(d + λ); for a schedule
        (T, T, k) with [j, s] = λ_j/(d + λ_j) Π_(s <= t < j) d/(d + λ_t), zero for s > j
        """
        xp = self.backend.xp
        if lam_steps is not None:
            R = self._windows(lam_steps) * xp.asarray(lam_steps, self.dtype)[:, None, None]
            if self._unknown_at(lam_steps):
                steps = xp.arange(n_steps)
                R[steps, steps, : self.unknown] = 1.0
            return R
        lam = check_lam(lam, batch=True)
        R = self.pure_filters(lam, n_steps) * xp.asarray(lam, self.dtype)[..., None, None]
        for i in np.argwhere(lam < self.rounding) if self.unknown else ():
            R[(*map(int, i), 0, slice(self.unknown))] = 1.0
        return R

    def smoother_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Filters of A^τ, or of A_j … A_s under a ridge for each step.

        Parameters and shapes as :meth:`residual_filters`: a^τ, or Π_(s <= t <= j) d/(d + λ_t).
        """
        if lam_steps is not None:
            return self._windows(lam_steps) * self.d
        return self.pure_filters(lam, n_steps) * self.d

    def limit(self, lam: float, alpha: float) -> Any:
        """Coordinates α/(αd + λ) z of infinitely many steps, eq. (17), (k, p).

        Raises
        ------
        ValueError
            The limit does not exist.
        """
        lam = float(check_lam(lam, batch=False, dtype=self.dtype))
        d = self.d.astype("float64")
        check_limit(d, lam, alpha)
        f = alpha / (alpha * d + lam)
        if self._unknown_at(lam):
            f[: self.unknown] = 0.0
        return check_coefficients((f[:, None] * self.z).astype(self.dtype))

    def shrinkage(self, C: Any, lam: Any, lam_steps: Any) -> Any:
        """diag B of steps that mix the pure steps with weights C: (T, k), or (T, k, p)."""
        xp = self.backend.xp
        powers = (self.d * self.pure_filters(lam, len(C), lam_steps))[..., None]
        if C.ndim == 3:
            powers = xp.repeat(powers, C.shape[-1], -1)
        B = mix(C, powers, xp, scheduled=lam_steps is not None).astype(self.dtype)
        return B if C.ndim == 3 else B[..., 0]

    # --------------------------------------------------------- training rows
    def diag_powers(self, lam: Any, n_steps: int) -> Any:
        """diag(A^τ) = (V∘V) a^τ (+ q² with an intercept), τ = 1..T.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T

        Returns
        -------
        ndarray of shape (T, n), or (L, T, n) for a batch; n counts rows of positive weight
        """
        powers = self.diagonals(self.d * self.pure_filters(lam, n_steps))
        return powers if self.q is None else powers + (self.q**2).astype(self.dtype)

    def diagonals(self, filters: Any) -> Any:
        """diag(V f Vᵀ) of the kept training rows: filters (…, k) → (…, n), one product for all."""
        lead = filters.shape[:-1]
        F = filters.reshape(math.prod(lead), self.k).T
        return self.backend.squares_matmul(self.V, F).T.reshape(*lead, self.V.shape[0])

    def applied(self, filters: Any) -> Any:
        """W^−½ V f z, a filtered y at the kept training rows: filters (…, k) → (…, n, p)."""
        return self.unweighted(self.in_rows(filters[..., None] * self.z))

    def fold(self, rows: Any) -> Fold:
        """A set S of kept rows to leave out."""
        return _EighFold(self, rows)

    # --------------------------------------------------------------- helpers
    def warn_below_rounding(self, lam: Any) -> None:
        """Also where negative eigenvalues of a matrix that is the caller's were set to 0."""
        super().warn_below_rounding(lam)
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

    def _unknown_at(self, lam: Any) -> bool:
        """Whether eigenvalues that may be rounding alone are taken as 0 for one λ, or schedule."""
        return self.unknown > 0 and bool(np.min(lam) < self.rounding)

    def _windows(self, lam_steps: Any) -> Any:
        """Pure filters 1/(d + λ_j) Π_(s <= t < j) d/(d + λ_t) of the steps s..j: (T, T, k)."""
        xp = self.backend.xp
        check_lam(lam_steps, batch=True, dtype=self.dtype)
        d = self.d.astype("float64")
        T = len(lam_steps)
        W = xp.zeros((T, T, self.k), self.dtype)
        for s in range(T):
            passed = xp.ones_like(d)
            for j in range(s, T):
                M = passed / (d + float(lam_steps[j]))
                W[j, s] = M
                passed = M * d
        if self._unknown_at(lam_steps):
            W[..., : self.unknown] = 0.0
        return W


class _EighFold(Fold):
    """Blocks V_S f V_Sᵀ; a correction is held as V_Sᵀ δ."""

    def __init__(self, spectrum: EighSpectrum, rows: Any) -> None:
        super().__init__(spectrum, rows)
        self.V = spectrum.V[rows]

    def solver(self, lam: float, filter_: Any) -> Callable[[Any], Any]:
        """By a factor of the block, or of the kernel matrix of the rows T outside of S.

        The block costs 2|S|²k + |S|³/3 flops. A refit without S costs |T|³/3, since its kernel
        matrix is computed anew from the rows, and serves the same purpose (Schur complement):

            [(I − A)_SS]⁻¹ = I + (K_SS − K_ST (K_TT + λI)⁻¹ K_TS) / λ.

        It is the cheaper one for two folds, and for a group of more than half of the rows.
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
            along = d * (self.V.T @ r)
            inner = be.cholesky_solve(L, V_T @ along)
            return r + self.V @ (along - d * (V_T.T @ inner)) / be.xp.asarray(lam, r.dtype)

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


def _clamped(d: Any, kernel: Kernel, xp: Any, rounding: float, n: int) -> Any:
    """Eigenvalues with rounding below zero removed: the only place where that is done.

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
