"""What all solvers share: the protocol, the training set, and the checks.

With weights W and q = √w/‖√w‖, every solver works on

    K_w = W^½ K W^½,                      without an intercept,
    H K_w H + shift q qᵀ,  H = I − qqᵀ,   with one,

and on the targets t = W^½ (y − ȳ), which are orthogonal to q. The shift moves the eigenvector q
away from the null space, with which it would otherwise mix. A model with weighted dual
coefficients c ⟂ q predicts

    f(x) = ȳ + κ(x, X) W^½ c − r·c,   r = W^½ k̄,   k̄_j = Σ_i w_i κ(x_i, x_j) / Σ_i w_i,

with r = 0 and ȳ = 0 without an intercept. Rows of weight 0 are dropped; the others are the
*retained* rows.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from selfdistill_fast._gram import native_gram
from selfdistill_fast._html import number, table
from selfdistill_fast._solvers.evaluation import check_new, evaluate
from selfdistill_fast._solvers.fold import Fold
from selfdistill_fast._solvers.matrix import (
    centre,
    check_diagonal,
    check_symmetric,
    check_weighted,
    rounding,
    scale_of,
)
from selfdistill_fast._solvers.problem import Request, TrainingSet
from selfdistill_fast._solvers.solver import Solver
from selfdistill_fast._validation import check_memory, largest, warn_caller
from selfdistill_fast.kernels import Kernel, Precomputed

__all__ = ["Spectrum"]


#: relative error of predictions, caused by unequal weights, that gives no warning
_LOST_BY_WEIGHTS = 1e-2


class Spectrum(Solver):
    """A factorised training set: the part common to all solvers.

    Attributes
    ----------
    kernel : Kernel
    backend : backend object that holds the arrays
    X : (n, d) training rows; for a precomputed kernel None
    basis : (b, d) the rows that dual coefficients belong to: X, or landmarks
    Y : (n, p) targets, centred by ``y_mean`` where there is an intercept
    n, k, p : int
        Training rows, coordinates, targets.
    target : (n retained rows, p) weighted, centred targets t
    filters : Filters, or None for a solver without eigenvalues; see spectral.py
    d : (k,) eigenvalues, ascending and >= 0 (spectral solvers)
    z : (k, p) rotated targets Vᵀ t (spectral solvers)
    sample_weight : (n,) or None
    total_weight : float, the sum of the weights (n without weights)
    rows : index array of the rows with positive weight, or None for all
    q : (n retained rows,) the unit vector √w/‖√w‖ with an intercept, else None
    y_mean : (p,) the intercept's share of every prediction; 0 without an intercept
    one_target : bool
        y was one-dimensional, and so are predictions.
    scale : float
        Largest eigenvalue of K_w before centring, or an upper bound not far above it. It sets
        the level of rounding errors: see :attr:`rounding`.
    plan : Plan or None
        Why ``solver="auto"`` chose this one.

    A subclass is a solver; ``solver(training, request)`` makes one from a ``TrainingSet`` and a
    ``Request``.
    """

    kernel: Kernel
    backend: Any
    X: Any
    basis: Any
    Y: Any
    n: int
    k: int
    target: Any
    sample_weight: Any
    rows: Any
    y_mean: Any
    one_target: bool
    fit_intercept: bool
    scale: float
    plan: Any = None

    def __init__(self, training: TrainingSet, request: Request) -> None:
        raise NotImplementedError

    def _prepare(self, training: TrainingSet, request: Request, *, needed: int) -> None:
        """Set the attributes above.

        ``needed`` is the peak memory in bytes, checked before anything large is allocated.
        """
        be, X, y, kernel = training.backend, training.X, training.y, training.kernel
        w, fit_intercept = training.sample_weight, training.fit_intercept
        xp = be.xp
        precomputed = isinstance(kernel, Precomputed)
        self.backend, self.kernel, self.fit_intercept = be, kernel, fit_intercept
        self.X = None if precomputed else X.copy()  # the caller may change X later
        self.n, self.one_target = X.shape[0], y.ndim == 1
        self.basis = self.X  # the rows that dual coefficients belong to
        self.sample_weight = None if w is None else w.copy()
        self.rows = None if w is None or bool((w > 0).all()) else xp.nonzero(w > 0)[0]
        # of a precomputed K, only the part that concerns the rows of weight 0 is stored
        self._K_dropped: Any = X[w == 0] if precomputed and self.rows is not None else None
        check_memory(
            be,
            needed,
            f"{type(self).__name__} of {X.shape[0]} rows in {X.dtype}",
            request.max_memory,
            f"remedies: float32 input (half the bytes), {self.memory_hint}, or a larger max_memory",
        )
        weights = xp.ones(self.n) if w is None else w
        weights = self.kept(weights)
        check_weighted(largest(weights), X.dtype)
        self._root = None if w is None else xp.sqrt(weights).astype(X.dtype)
        Y = y.reshape(self.n, -1).astype("float64")
        self.q: Any = None
        self._offset: Any = None
        self.y_mean = xp.zeros(Y.shape[1])
        self.total_weight = float(weights.sum())
        if fit_intercept:
            self.y_mean = weights @ self.kept(Y) / self.total_weight
            self.q = xp.sqrt(weights / self.total_weight)
        Y = Y - self.y_mean
        self.Y = Y.astype(X.dtype)
        self.target = (self.kept(Y) * xp.sqrt(weights)[:, None]).astype(X.dtype)
        if not largest(abs(self.target)) * self.n <= float(np.finfo(X.dtype).max):
            raise ValueError(
                f"y overflows {X.dtype}"
                + ("" if w is None else ", times the roots of sample_weight")
                + ": scale y down"
                + (", or use float64 rows" if X.dtype == np.float32 else "")
            )

    def _checked_matrix(self, X: Any, *, copy: bool) -> Any:
        """K of the retained rows, unweighted, finite and symmetric.

        ``copy``: the result may be overwritten.
        """
        xp, kernel = self.backend.xp, self.kernel
        precomputed = isinstance(kernel, Precomputed)
        if not precomputed:
            K = native_gram(self.backend, self.kept(X), None, kernel)
        elif self.rows is None:
            K = X
        else:
            K = X[self.rows][:, self.rows]
        if copy and not kernel.pair and not (precomputed and self.rows is not None):
            K = K.copy()  # the caller may still use the matrix, or the function's result
        check_diagonal(xp.diagonal(K), self.kept(X) if kernel.built_in else None, kernel, K.dtype)
        if not kernel.definite:
            check_symmetric(K, xp)
        return K

    def _kernel_matrix(self, X: Any, shift: float) -> Any:
        """The matrix defined at the head of this module, in memory that may be overwritten.

        q is moved to the eigenvalue ``shift`` · trace/n; see :func:`centre`.
        """
        xp = self.backend.xp
        K = self._checked_matrix(X, copy=True)
        if self._root is not None:
            K *= self._root[:, None]
            K *= self._root[None, :]
        self.scale = scale_of(K, xp)
        check_weighted(self.scale, K.dtype)
        if self.q is not None:
            m, self.shift = centre(K, self.q, shift, xp)
            self._offset = m / self.total_weight**0.5
        return K

    @property
    def rounding(self) -> float:
        """Size of an eigenvalue that may be rounding alone: 10 ε ‖K_w‖, before centring."""
        return rounding(self.scale, self.dtype)

    @property
    def p(self) -> int:
        """Number of targets."""
        return int(self.Y.shape[1])

    @property
    def dtype(self) -> Any:
        """float32 or float64."""
        return self.Y.dtype

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.kernel!r}, n={self.n}, k={self.k}, p={self.p}, "
            f"dtype={self.dtype}, backend={self.backend.name!r})"
        )

    def _repr_html_(self) -> str:
        facts = {
            "kernel": repr(self.kernel),
            "rows": self.n if self.rows is None else f"{len(self.rows)} of {self.n}",
            "eigenvalues" if self.filters is not None else "coordinates": self.k,
            "targets": self.p,
            "dtype, backend": f"{self.dtype}, {self.backend.name}",
            "weights": "no" if self.sample_weight is None else "yes",
            "intercept": "yes" if self.fit_intercept else "no",
            "norm of K": number(self.scale),
        }
        return table(f"Spectrum by solver {self.name!r}", ("", ""), facts.items())

    # What a solver answers about its basis; see the head of the package.
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k).

        Parameters
        ----------
        X_new : array_like of shape (m, d)
            With a precomputed kernel K(X_new, X), (m, n).
        """
        raise NotImplementedError

    def diag_powers(self, lam: Any, n_steps: int) -> Any:
        """diag(A^τ), τ = 1..T, of the training rows of positive weight.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of λ values, never a schedule.
        n_steps : int T

        Returns
        -------
        ndarray of shape (T, n), or (L, T, n) for a batch
        """
        self.check_leave_one_out()
        powers = self.diagonals(self.smoother_filters(lam, n_steps))
        return powers if self.q is None else powers + (self.q**2).astype(self.dtype)

    def diagonals(self, filters: Any) -> Any:
        """Diagonals at the retained training rows: filters (…, k) → (…, n)."""
        self.check_leave_one_out()
        raise NotImplementedError

    def applied(self, filters: Any) -> Any:
        """Filtered targets at the retained training rows: filters (…, k) → (…, n, p)."""
        return self.unweighted(self.in_rows(filters[..., None] * self.z))

    def applied_and_diagonals(self, filters: list[Any]) -> list[Any]:
        """The filtered targets of each filter, then the diagonal of each."""
        return [self.applied(f) for f in filters] + [self.diagonals(f) for f in filters]

    def fold(self, rows: Any) -> Fold:
        """A set S of retained rows to leave out, given by positions among the retained rows."""
        self.check_leave_one_out()
        raise NotImplementedError

    def in_rows(self, coordinates: Any) -> Any:
        """Weighted dual coefficients of the retained rows from coordinates (…, k, p)."""
        raise NotImplementedError

    def dual(self, coordinates: Any) -> Any:
        """Dual coefficients (…, n, p) of coordinates (…, k, p); zero for rows of weight 0."""
        kept = self.in_rows(coordinates)
        if self._root is not None:
            kept = kept * self._root[:, None]
        if self.rows is None:
            return kept
        shape = (*coordinates.shape[:-2], self.n, coordinates.shape[-1])
        full = self.backend.xp.zeros(shape, kept.dtype)
        full[..., self.rows, :] = kept
        return full

    def select(self, dropped: Any) -> Any:
        """Training rows of weight 0, as :meth:`evaluate` takes them."""
        if self.X is not None:
            return self.X[dropped]
        position = self.backend.xp.cumsum(self.sample_weight == 0) - 1
        return self._K_dropped[position[dropped]]

    def constant(self, coordinates: Any) -> Any:
        """What a prediction adds to κ(x, X) @ dual: ȳ − r·c, (…, p)."""
        mean = self.y_mean.astype(self.dtype)
        if self._offset is None:
            shape = (*coordinates.shape[:-2], coordinates.shape[-1])
            return self.backend.xp.zeros(shape, self.dtype) + mean
        return mean - self._offset_of_basis() @ coordinates

    def _offset_of_basis(self) -> Any:
        """r in coordinates, (k,)."""
        raise NotImplementedError

    def _weighted_gram(self, X_new: Any) -> Any:
        """κ(x, X) W^½ at new points, for the retained rows."""
        X_new = self.check_new(X_new)
        if self.X is None:
            K = X_new if self.rows is None else X_new[:, self.rows]
        else:
            K = native_gram(self.backend, X_new, self.kept(self.X), self.kernel)
        return K if self._root is None else K * self._root

    def regularised_gram(self, rows: Any, lam: float) -> Any:
        """K_w + λI of some of the retained rows, recomputed (not for a precomputed kernel)."""
        xp = self.backend.xp
        K = native_gram(self.backend, self.kept(self.X)[rows], None, self.kernel)
        if self._root is not None:
            K *= self._root[rows][:, None]
            K *= self._root[rows][None, :]
        K[xp.arange(len(K)), xp.arange(len(K))] += xp.asarray(lam, K.dtype)
        return K

    def unweighted(self, a: Any) -> Any:
        """W^−½ a for a (…, n, p) at the retained rows."""
        return a if self._root is None else a / self._root[:, None]

    def kept(self, a: Any) -> Any:
        """The retained rows (those of positive weight) of an array over training rows."""
        return a if self.rows is None else a[self.rows]

    def evaluate(self, X_new: Any, coordinates: Any) -> Any:
        """Predictions (…, m, p) at new points from coordinates (…, k, p).

        ``X_new`` is native; with a precomputed kernel it is K(X_new, X), (m, n).
        """
        lead, (k, p) = coordinates.shape[:-2], coordinates.shape[-2:]
        coordinates = coordinates.reshape(math.prod(lead), k, p)
        dual, constant = self.dual(coordinates), self.constant(coordinates)
        F = evaluate(self.backend, X_new, self.basis, self.kernel, dual, constant)
        return F.reshape(*lead, X_new.shape[0], p)

    def warn_below_rounding(self, lam: Any) -> None:
        """RuntimeWarning if λ is below the rounding of K, so that no digit is guaranteed."""
        smallest = float(np.min(lam))
        single = self.dtype == np.float32
        limit = self.rounding * (10.0 if single else max(10.0, 0.1 * len(self.target)))
        if smallest < limit:
            error = 10.0 * self.rounding / smallest
            warn_caller(
                f"lam={smallest:g} is below the rounding of K in {self.dtype}, {limit:.2g} (its "
                f"norm is {self.scale:.3g}): predictions may have no correct digit (a relative "
                f"error of {min(error, 1.0):.2g}); the error is at most 1e-3 for lam >= "
                f"{1e4 * self.rounding:.2g}: use a larger lam" + (" or float64" if single else ""),
                RuntimeWarning,
            )

    def _warn_of_unequal_weights(self, lam: Any) -> None:
        """RuntimeWarning if eigenvectors have too few digits in rows of small weight.

        K_w is known to ε ‖K_w‖, although the entries of such rows are far smaller. The effect on
        predictions is at most ε (‖K_w‖/λ) min(√(max w/min w), √(‖K_w‖/λ)), relative to y.
        """
        if self.sample_weight is None:
            return
        w, smallest = self.kept(self.sample_weight), float(np.min(lam))
        condition = self.scale / smallest
        growth = min(float(w.max() / w.min()), condition) ** 0.5
        error = float(np.finfo(self.dtype).eps) * condition * growth
        if growth > 100.0 and error > _LOST_BY_WEIGHTS:
            warn_caller(
                f"the weights are so different that predictions lose digits at lam={smallest:g} "
                f"with solver={self.name!r}: the relative error may reach {min(error, 1.0):.2g}; "
                "use solver='cholesky', a larger lam, or weight 0 for rows of negligible weight",
                RuntimeWarning,
            )

    def _check_underflow(self) -> Self:
        """Return self; ValueError if coefficients underflow for every λ."""
        if self._underflows(largest(abs(self.target))):
            raise ValueError(
                f"y (at most {largest(abs(self.Y)):.2g}) is so small relative to the kernel (norm "
                f"{self.scale:.2g}, with sample_weight) that coefficients underflow "
                f"{self.dtype}: scale y up, or the kernel and lam down"
                + (", or use float64" if self.dtype == np.float32 else "")
            )
        return self

    def _warn_of_underflow(self, lam: Any) -> None:
        """RuntimeWarning if coefficients of a target underflow for the largest λ."""
        sizes, top = abs(self.target).max(0), float(np.max(lam))
        smallest = float(self.backend.xp.where(sizes > 0.0, sizes, np.inf).min())
        if self._underflows(smallest, top):
            warn_caller(
                f"coefficients of size y/lam underflow {self.dtype} at lam={top:g} (a target has "
                f"numbers of at most {smallest:.2g}, with sample_weight), so its "
                "predictions lose digits: scale y up, or the kernel and lam down"
                + (", or use float64" if self.dtype == np.float32 else ""),
                RuntimeWarning,
            )

    def _underflows(self, size: float, lam: float = 0.0) -> bool:
        """Whether coefficients of a target of this size lose digits because they are so small.

        Coefficients are y/(K + λ), of the weighted and of the caller's problem. Their resolution
        is the smallest number of the dtype; K + λ times that must be small relative to y.
        """
        info = np.finfo(self.dtype)
        root = (self.total_weight / max(len(self.target), 1)) ** 0.5
        lost = 8.0 * (self.scale + lam) * float(info.smallest_subnormal) * max(1.0, 1.0 / root)
        return 0.0 < float(info.eps) * size < lost

    def check_new(self, X_new: Any, name: str = "X") -> Any:
        """New points as a native array with the right number of columns."""
        n_features = self.n if self.X is None else int(self.X.shape[1])
        return check_new(self.backend, X_new, n_features, self.dtype, self.kernel, name)
