"""Nyström spectra: kernel ridge regression on the functions κ(·, L) of m landmark rows L.

With the pivoted Cholesky factor K_LL = RᵀR, cut where its pivots fall below round-off, the
landmark model is ridge regression on the features φ(x) = κ(x, L) R⁻¹: the kernel is replaced
by φ(x)·φ(z). The rest is in feature_space. The pass over the rows also adds up

    Σ w κ(x, x)   and   Σ w min(κ(x, x) − ‖φ(x)‖², 0).

Digits: to those of a full spectrum comes the rounding of κ in the features. A pivot p_j of K_LL
is known to ε max κ, so that the trace of the model's kernel matrix is known to

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
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from selfdistill_fast._gram import native_diagonal, native_gram
from selfdistill_fast._solvers.evaluation import one_product
from selfdistill_fast._solvers.feature_space import FeatureSpectrum, block_rows
from selfdistill_fast._solvers.matrix import check_diagonal, check_symmetric, rounding
from selfdistill_fast._solvers.nystrom.features import Features, TracedSums
from selfdistill_fast._solvers.nystrom.landmarks import (
    SAMPLINGS,
    better_sampling,
    indefinite,
    landmarks,
    pivoted_cholesky,
    sample,
)
from selfdistill_fast._solvers.nystrom.memory import nystrom_bytes
from selfdistill_fast._solvers.problem import Problem, Rates, Request, TrainingSet, Work
from selfdistill_fast._validation import check_n_steps, largest, warn_caller
from selfdistill_fast.kernels import Precomputed

__all__ = ["NystromOptions", "NystromSpectrum"]

#: rounding of the trace of the model's kernel matrix, in ε tr(K), up to which landmarks are kept
_LOST = 5000.0


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


class NystromSpectrum(FeatureSpectrum):
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
        self._decompose(*self._summed(R, m))

    def _choose(self, training: TrainingSet, request: Request, m: int) -> Any:
        """At most m landmarks, in the order of pivots; returns the factor R of their K."""
        be, kernel, w = training.backend, training.kernel, training.sample_weight
        xp, sampling = be.xp, request.options.sampling
        random = np.random.default_rng(request.random_state)
        pool = xp.asarray(sample(be, self.X, w, m, sampling, random))
        rows, weights = self.X[pool], None if w is None else w[pool]
        if kernel.built_in:
            check_diagonal(native_diagonal(be, rows, kernel), rows, kernel, self.dtype)
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
        # the features of the landmarks are Rᵀ
        middle = R.mean(1) if len(R) else xp.zeros(0)
        S, b, mean, traces, middle = self._sums(TracedSums, features, middle)
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

    def dual(self, coordinates: Any) -> Any:
        """Dual coefficients of the landmarks, (…, r, p)."""
        be, u = self.backend, self._in_features(coordinates)
        if u.size:
            R = cast(Features, self._model.features).R
            u = one_product(lambda a: be.triangular_solve(R, a, lower=False), u, be.xp)
        return u.astype(self.dtype)


def _pilot_model(request: Request, m: int, training: TrainingSet, sampling: str) -> NystromSpectrum:
    options = replace(request.options, n_landmarks=m, sampling=sampling)
    return NystromSpectrum(training, replace(request, random_state=0, options=options))
