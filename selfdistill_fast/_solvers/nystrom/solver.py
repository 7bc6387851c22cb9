"""Nyström spectra: kernel ridge regression on the functions κ(·, L) of m landmark rows L.

With the pivoted Cholesky factor K_LL = RᵀR, cut where its pivots fall below round-off, the
landmark model is ridge regression on the features φ(x) = κ(x, L) R⁻¹: the kernel is replaced
by φ(x)·φ(z). After the landmarks one pass over row blocks adds up, in float64,

    S = Φᵀ W Φ (m, m),   Φᵀ W y (m, p),   Σ w φ,   Σ w κ(x, x)   and   Σ w ‖φ(x)‖²;

with weights W and an intercept (base.py) μ is the weighted mean of φ, and

    H W^½ φ(X) = V D^½ Gᵀ,   from   S − (Σ w) μ μᵀ = G D Gᵀ.

Then everything is as for a full spectrum, with k <= m eigenvalues instead of n, and a
complement of V (and q) where the model's kernel matrix is zero: A = V a Vᵀ there, and I − A is
the identity outside of V. Eigenvalues below rounding are raised to it and stay: V is then short
there, but V D^½ Gᵀ and so all that is linear in D is not, and a new sample may be far along G.
A filter is held as its values on the eigenvalues and, last, on that complement: (k + 1,).
project(x) = (φ(x) − μ) G D^½. V (n, k) is not held: what needs its rows (leave-one-out, folds)
computes them again, block by block, in another pass.

Digits: S squares the condition number of Φ, but not that of the problem. D are the eigenvalues
of the model's kernel matrix, and what remains is the rounding of κ. A pivot p_j of K_LL is known
to ε max κ, so that the trace of the model's kernel matrix is known to

    δ = ε max κ(x, x) Σ_j (Σ_i w_i φ_j(x_i)²) / p_j.

Where landmarks are chosen among all rows, φ_j² is of the size of p_j and δ stays near ε tr(K).
Where they lie so that rows are extrapolated from nearly equal landmarks, δ grows like 1/p_j:
then the last landmarks, in the order of pivots, are dropped until δ <= 5000 ε tr(K), which the
pass allows without another one (a prefix of the columns of φ is the model of a prefix of the
landmarks). A λ value leaves a relative error of about δ/λ, or ε d_max/λ where that is more.
A new sample may lie along a direction that the training samples hardly have: φ_j is known to
ε max κ/√p_j, and the error there may reach ε (max κ³ Σw Σ_j 1/p_j)^½ / λ.
What must not be done is to take R⁻¹ out of the sum: R⁻ᵀ (K_LXᵀ…) R⁻¹ would multiply rounding
by 1/ε.

Leave-one-out and leave-fold-out are exact for this model with its landmarks held fixed: a
row that is left out of the fit may still be a landmark.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from selfdistill_fast._gram import native_gram
from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.evaluation import one_product
from selfdistill_fast._solvers.fold import Fold
from selfdistill_fast._solvers.matrix import (
    check_diagonal,
    check_symmetric,
    check_weighted,
    rounding,
)
from selfdistill_fast._solvers.nystrom.features import Basis, Features, OnRows, Project, Sums
from selfdistill_fast._solvers.nystrom.fold import NystromFold
from selfdistill_fast._solvers.nystrom.landmarks import (
    SAMPLINGS,
    better_sampling,
    diagonal_of,
    indefinite,
    landmarks,
    pivoted_cholesky,
    sample,
)
from selfdistill_fast._solvers.nystrom.memory import block_rows, nystrom_bytes
from selfdistill_fast._solvers.problem import Problem, Rates, Request, TrainingSet, Work
from selfdistill_fast._solvers.sources import is_dask, map_dask
from selfdistill_fast._solvers.spectral import Filters
from selfdistill_fast._validation import check_n_steps, largest, warn_caller
from selfdistill_fast.kernels import Kernel, Precomputed

__all__ = ["NystromOptions", "NystromSpectrum"]

#: rounding of the trace of the model's kernel matrix, in ε tr(K), up to which landmarks are kept
_LOST = 5000.0
#: sums are recomputed about the mean where centring would subtract this many times what remains
_FAR = 10.0


@dataclass(frozen=True)
class NystromOptions:
    """Options of "nystrom"; see :func:`~selfdistill_fast.spectrum`."""

    n_landmarks: Any = 1000
    sampling: str = "auto"
    block: Any = None

    def __post_init__(self) -> None:
        if self.n_landmarks is not None:
            check_n_steps(self.n_landmarks, "n_landmarks")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"unknown sampling {self.sampling!r}; known: {', '.join(SAMPLINGS)}")
        if self.block is not None:
            check_n_steps(self.block, "block")


class NystromSpectrum(Spectrum):
    """Spectrum of a landmark model; made by :func:`~selfdistill_fast.spectrum`.

    Attributes
    ----------
    X : the training rows, see :class:`~selfdistill_fast._solvers.sources.Rows`
    sampling : "rpcholesky", "uniform" or "kmeans", as asked for, or as "auto" has chosen
    landmarks : (r,) indices of the landmark rows
    basis : (r, d) the landmarks, r <= n_landmarks
    approximation_error : float
        ε = tr(K − K̂) / tr(K), K̂ the model's kernel matrix; of W^½KW^½ with weights, uncentred
        with an intercept. It is exact and costs nothing. K − K̂ is positive semi-definite, so
        its norm is at most ε tr(K): the smoothers differ by ‖A − Â‖₂ <= ε tr(K)/λ (tr(K) = n
        for a stationary kernel), and so do the first step's predictions at the training rows,
        relative to ‖y‖.
    """

    name = "nystrom"
    Options = NystromOptions
    exact = False
    streams = True
    memory_hint = "fewer landmarks (n_landmarks)"

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """N m² flops in one pass over the rows."""
        be, n, m = problem.backend, problem.n, min(problem.n_landmarks, problem.n)
        m3 = float(m) ** 3
        return Work(
            bytes=nystrom_bytes(be, n, problem.d, problem.p, m, problem.dtype),
            flops=3.0 * n * m * m + 9.0 * m3,  # a third of it for the landmarks
            seconds=2.0 * n * m * rates.entry(problem.d)
            + 3.0 * n * m * m * rates.gemm
            + 9.0 * m3 * rates.eigh,
        )

    def __init__(self, training: TrainingSet, request: Request) -> None:
        be, kernel = training.backend, training.kernel
        w = training.sample_weight
        if isinstance(kernel, Precomputed):
            raise ValueError("solver='nystrom' computes κ(x, landmarks): it needs rows, not K")
        options = request.options
        n, n_features = training.X.shape
        n_landmarks = 1000 if options.n_landmarks is None else int(options.n_landmarks)
        m = min(n_landmarks, training.n_kept)
        self.block = min(block_rows(options.block, m), n)
        needed = nystrom_bytes(
            be,
            n,
            n_features,
            training.p,
            m,
            training.dtype,
            streaming=training.X.streaming,
            sampling=options.sampling,
            block=options.block,
        )
        self._prepare(training, request, needed=needed)
        R = self._choose(training, request, m)
        root = None if w is None else be.xp.sqrt(self.sample_weight)
        self._aligned = (root, self._all(self.target))
        self._decompose(*self._summed(R, m))

    def _choose(self, training: TrainingSet, request: Request, m: int) -> Any:
        """At most m landmarks, in the order of pivots; returns the factor R of their K."""
        be, kernel, w = training.backend, training.kernel, training.sample_weight
        xp, sampling = be.xp, request.options.sampling
        random = np.random.default_rng(request.random_state)
        pool = xp.asarray(sample(be, self.X, w, m, sampling, random))
        rows, weights = self.X[pool], None if w is None else w[pool]
        if kernel.pair:
            check_diagonal(diagonal_of(be, rows, kernel), rows, kernel, self.dtype)
        if sampling == "auto":
            candidates = replace(training, X=rows, y=training.y[pool], sample_weight=weights)
            sampling = better_sampling(
                candidates, m, functools.partial(_pilot_model, request, m // 4)
            )
            del candidates
        self.sampling = sampling
        chosen = landmarks(be, rows, weights, kernel, m, sampling, random)
        basis, chosen = rows[chosen], pool[chosen]
        del rows
        K = native_gram(be, basis, None, kernel)
        check_diagonal(xp.diagonal(K), None, kernel, self.dtype)
        if not kernel.definite:
            check_symmetric(K, xp)
        order, R = pivoted_cholesky(K, kernel, xp)
        self.basis, self.landmarks = basis[order], chosen[order]
        return R

    def _summed(self, R: Any, m: int) -> tuple[Any, ...]:
        """The sums of one pass over the rows, for the landmarks that keep their digits.

        Returns the features φ, S, ΦᵀWy, the sum of √w(φ − c), and c, a point near the mean of φ.
        """
        be, kernel = self.backend, self.kernel
        xp, eps = be.xp, float(be.xp.finfo(self.dtype).eps)
        features = Features(be, kernel, self.basis, R)
        # centre the sums at the mean of the landmarks, whose features are Rᵀ
        middle = R.mean(1) if self.fit_intercept and len(R) else xp.zeros(len(R))
        job = Sums(features, middle if self.fit_intercept else None)
        S, b, mean, traces = self.X.total(job, self.block, *self._aligned)
        far = float(mean @ mean) / self.total_weight
        if self.fit_intercept and far > _FAR * max(float(xp.trace(S)) - far, 0.0):
            middle = middle + mean / self.total_weight
            S, b, mean, traces = self.X.total(Sums(features, middle), self.block, *self._aligned)
        if not bool(xp.isfinite(traces).all()):
            raise _overflow(kernel, self.dtype)
        total, below = float(traces[0]), float(traces[1])
        if not kernel.definite and below < -1e3 * m * eps * abs(total):
            raise indefinite(f"{below:g} in sum on the diagonal of the other rows")
        squares = xp.diagonal(S) + (2.0 * mean + self.total_weight * middle) * middle
        pivots = xp.diagonal(R) ** 2
        # rounding of the trace, by the number of landmarks; the first pivot is max κ
        lost = eps * xp.cumsum(squares / pivots * pivots[:1])
        r = max(int((lost <= _LOST * eps * total).sum()), min(1, len(R)))
        held = float(squares[:r].sum())
        self.approximation_error = max(total - held, 0.0) / total if total > 0 else 0.0
        self._lost = float(lost[r - 1]) if r else 0.0
        spread = float((pivots[:1] / pivots[:r]).sum())  # a power of max κ could overflow
        self._far = eps * float(largest(pivots)) * (self.total_weight * spread) ** 0.5
        if r == len(R):
            return features, S, b, mean, middle
        self.basis, self.landmarks = self.basis[:r], self.landmarks[:r]
        features = Features(be, kernel, self.basis, R[:r, :r])
        return features, S[:r, :r], b[:r], mean[:r], middle[:r]

    def _decompose(self, features: Features, S: Any, b: Any, mean: Any, middle: Any) -> None:
        """Eigenvalues and filters of the model from its sums."""
        be, xp, total_weight = self.backend, self.backend.xp, self.total_weight
        if self.fit_intercept:
            mean /= total_weight
            S -= (total_weight * mean)[:, None] * mean[None, :]
            middle = middle + mean
        d, G = be.eigh(S)
        self.scale = largest(d)
        if self.fit_intercept:
            self.scale += total_weight * float(middle @ middle)
        check_weighted(self.scale, self.dtype)
        # raised, not dropped: a new sample may be far along a direction that is negligible here
        d = xp.maximum(d, rounding(self.scale, d.dtype))
        self.k = int(d.shape[0])
        scale = xp.sqrt(d)
        z = (G.T @ b) / scale[:, None]
        dtype = self.dtype
        self.filters = Filters(be, d.astype(dtype), z.astype(dtype), dtype, complement=True)
        mean = middle if self.fit_intercept else None
        self._model = Basis(features, mean, G, scale, z, total_weight)

    @property
    def rounding(self) -> float:
        """Size of an eigenvalue that may be rounding alone, see the head of this module."""
        return max(rounding(self.scale, self.dtype), self._lost)

    def warn_below_rounding(self, lam: Any) -> None:
        """Also warn where predictions far from the training samples may have no correct digit."""
        super().warn_below_rounding(lam)
        smallest = float(np.min(lam))
        if 10.0 * self.rounding <= smallest < 10.0 * self._far:
            warn_caller(
                f"lam={smallest:g} is so small that predictions at samples unlike the training "
                "samples may have no correct digit: some landmarks nearly determine others; use "
                f"fewer landmarks, or lam={1e3 * self._far:.2g} or more",
                RuntimeWarning,
            )

    # ------------------------------------------------------------ new points
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): φ(x) G D^½, centred with an intercept.

        Of a dask array the result is one, too, and lazy.
        """
        if is_dask(X_new):
            job = Project(self._model.alone(), self.dtype, self.block)
            return map_dask(X_new, self.basis.shape[1], job, (None, self.k), self.dtype)
        return Project(self._model, self.dtype, self.block)(self.check_new(X_new))

    def dual(self, coordinates: Any) -> Any:
        """Dual coefficients of the landmarks, (…, r, p)."""
        be, u = self.backend, self._in_features(coordinates)
        if u.size:
            R = self._model.features.R
            u = one_product(lambda a: be.triangular_solve(R, a, lower=False), u, be.xp)
        return u.astype(self.dtype)

    def constant(self, coordinates: Any) -> Any:
        """What a prediction adds to κ(x, L) @ dual: ȳ − μ·u, (…, p)."""
        xp = self.backend.xp
        constant = xp.zeros((*coordinates.shape[:-2], coordinates.shape[-1])) + self.y_mean
        if self._model.mean is not None:
            constant -= self._model.mean @ self._in_features(coordinates)
        return constant.astype(self.dtype)

    def _in_features(self, coordinates: Any) -> Any:
        """u = G D^½ coordinates (…, r, p): predictions are φ(x)·u + constant."""
        scaled = self._model.scale[:, None] * coordinates
        return self._model.G @ scaled

    # --------------------------------------------- training rows, in one more pass
    def diagonals(self, filters: Any) -> Any:
        """Diagonals at the kept training rows: filters (…, k + 1) → (…, n)."""
        return self._on_rows([], [filters])[0]

    def applied(self, filters: Any) -> Any:
        """Filtered targets at the kept training rows: filters (…, k + 1) → (…, n, p)."""
        return self._on_rows([filters], [])[0]

    def applied_and_diagonals(self, filters: list[Any]) -> list[Any]:
        """Both, of several filters, in one pass over the rows."""
        return self._on_rows(filters, filters)

    def _on_rows(self, applied: list[Any], diagonals: list[Any]) -> list[Any]:
        """Filtered targets of some filters and diagonals of others, one pass for all."""
        xp, k, p = self.backend.xp, self.k, self.p

        def flat(filters: list[Any]) -> Any:
            rows = [f.reshape(math.prod(f.shape[:-1]), k + 1) for f in filters]
            return xp.concatenate(rows) if rows else xp.zeros((0, k + 1))

        job = OnRows(self._model, flat(applied), flat(diagonals), self.dtype)
        n = self.n
        F = xp.empty((len(job.applied), n, p), self.dtype)
        Q = xp.empty((len(job.diagonals), n), self.dtype)
        for start, (F_block, Q_block) in self.X.each(job, self.block, *self._aligned):
            F[:, start : start + F_block.shape[1]] = F_block
            Q[:, start : start + Q_block.shape[1]] = Q_block
        if self.rows is not None:
            F, Q = F[:, self.rows], Q[:, self.rows]
        results: list[Any] = []
        for filters, a in ((applied, F), (diagonals, Q)):
            start = 0
            for f in filters:
                lead = f.shape[:-1]
                stop = start + math.prod(lead)
                results.append(a[start:stop].reshape(*lead, *a.shape[1:]))
                start = stop
        count = len(applied)
        return [self.unweighted(a) for a in results[:count]] + results[count:]

    def fold(self, rows: Any) -> Fold:
        """A set S of kept rows to leave out."""
        return NystromFold(self, rows)

    def _all(self, kept: Any) -> Any:
        """An array over kept rows with zeros for the rows of weight 0."""
        if self.rows is None:
            return kept
        full = self.backend.xp.zeros((self.n, *kept.shape[1:]), kept.dtype)
        full[self.rows] = kept
        return full


def _pilot_model(request: Request, m: int, training: TrainingSet, sampling: str) -> NystromSpectrum:
    options = replace(request.options, n_landmarks=m, sampling=sampling)
    return NystromSpectrum(training, replace(request, random_state=0, options=options))


def _overflow(kernel: Kernel, dtype: Any) -> ValueError:
    return ValueError(
        f"{kernel!r} overflows {dtype} on these rows: scale X down"
        + (" or use float64" if dtype == np.float32 else "")
    )
