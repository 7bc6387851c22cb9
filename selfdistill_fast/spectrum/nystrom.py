"""Nyström spectra: kernel ridge regression on the functions κ(·, L) of m landmark rows L.

With the pivoted Cholesky factor K_LL = RᵀR, cut where its pivots fall below round-off, the
landmark model is ridge regression on the features φ(x) = κ(x, L) R⁻¹: the kernel is replaced
by φ(x)·φ(z). After the landmarks one pass over row blocks adds up, in float64,

    S = Φᵀ W Φ (m, m),   Φᵀ W y (m, p),   Σ w φ,   Σ w κ(x, x)   and   Σ w ‖φ(x)‖²;

with weights W and an intercept (base.py) μ is the weighted mean of φ, and

    H W^½ φ(X) = V D^½ Gᵀ,   from   S − (Σ w) μ μᵀ = G D Gᵀ.

Then everything is as for a full spectrum, with k <= m eigenvalues instead of n, and a
complement of V (and q) where the model's kernel matrix is zero: A = V a Vᵀ there, and I − A is
the identity outside of V. A filter is held as its values on the eigenvalues and, last, on that
complement: (k + 1,). project(x) = (φ(x) − μ) G D^½. V (n, k) is not held: what needs its rows
(leave-one-out, folds) computes them again, block by block, in another pass.

Digits: S squares the condition number of Φ, but not that of the problem. D are the eigenvalues
of the model's kernel matrix, and what remains is the rounding of κ. A pivot p_j of K_LL is known
to ε max κ, so that the trace of the model's kernel matrix is known to

    δ = ε max κ(x, x) Σ_j (Σ_i w_i φ_j(x_i)²) / p_j.

Where landmarks are chosen among all rows, φ_j² is of the size of p_j and δ stays near ε tr(K).
Where they lie so that rows are extrapolated from nearly equal landmarks, δ grows like 1/p_j:
then the last landmarks, in the order of pivots, are dropped until δ <= 5000 ε tr(K), which the
pass allows without another one (a prefix of the columns of φ is the model of a prefix of the
landmarks). A λ value leaves a relative error of about δ/λ, or ε d_max/λ where that is more.
What must not be done is to take R⁻¹ out of the sum: R⁻ᵀ (K_LXᵀ…) R⁻¹ would multiply rounding
by 1/ε.

Leave-one-out and leave-fold-out are exact for this model with its landmarks held fixed: a
row that is left out of the fit may still be a landmark.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast import ranges
from selfdistill_fast.backend.threads import n_threads_now, one_blas_thread
from selfdistill_fast.gram import check_memory, native_gram
from selfdistill_fast.kernels import Kernel, Precomputed
from selfdistill_fast.spectrum.base import (
    Fold,
    Spectrum,
    _check_symmetric,
    check_diagonal,
    check_n_steps,
    largest,
    rounding,
)
from selfdistill_fast.spectrum.problem import Problem, Rates, Request, TrainingSet, Work
from selfdistill_fast.spectrum.rows import Rows, is_dask, map_dask
from selfdistill_fast.spectrum.spectral import Filters

__all__ = ["NystromSpectrum", "nystrom_bytes"]

SAMPLINGS = ("auto", "rpcholesky", "uniform", "kmeans")

#: what "auto" chooses from; the first where it cannot tell
_WAYS = ("rpcholesky", "kmeans")

#: landmarks that are drawn at a time, and columns of R that are computed at a time
_BATCH = 128
#: randomly pivoted Cholesky and k-means see a uniform sample of at most this many rows for
#: each landmark; of rows in memory at least so many
_POOL, _POOL_ROWS = 10, 32_768
#: "auto" decides by models of a quarter of the landmarks (at least so many) on so many rows at
#: least and at most, of which a quarter is held out
_PILOT_LANDMARKS, _PILOT_ROWS = 16, (4096, 32_768)
#: iterations of k-means: more do not predict better
_LLOYD = 10
#: rows of a block: as many as make a block of features this large, within the limits
_BLOCK_REALS, _BLOCK_ROWS = 1 << 23, (256, 4096)
#: bytes that the C library keeps of blocks that were freed, and that BLAS packs blocks into on
#: each of its threads; and what scikit-learn's clustering takes when it is imported
_RESERVE, _PACKED, _CLUSTERING = 16 << 20, 16 << 20, 144 << 20
#: rounding of the trace of the model's kernel matrix, in ε tr(K), up to which landmarks are kept
_LOST = 5000.0
#: rounding at new samples, relative to that at rows that are landmarks
_UNSEEN = 100.0


def _block_rows(block: Any, m: int) -> int:
    """Rows of a block of features."""
    if block is not None:
        return int(block)
    return min(max(_BLOCK_REALS // max(m, 1), _BLOCK_ROWS[0]), _BLOCK_ROWS[1])


def _pool(n: int, m: int, streaming: bool) -> int:
    """Rows that landmarks are chosen from."""
    return min(n, _POOL * m if streaming else max(_POOL * m, _POOL_ROWS))


def _pilot_rows(pool: int, m: int) -> int:
    """Rows of the pilot of "auto"; 0 where there is none."""
    rows = min(pool, _PILOT_ROWS[1])
    return rows if rows >= _PILOT_ROWS[0] and m // 4 >= _PILOT_LANDMARKS else 0


def nystrom_bytes(
    be: Any,
    n: int,
    d: int,
    p: int,
    m: int,
    dtype: Any,
    *,
    streaming: bool = False,
    sampling: str = "auto",
    block: int | None = None,
) -> int:
    """Peak bytes of a landmark model's factorisation, beside the caller's X and Y.

    Parameters
    ----------
    be : backend
    n, d, p, m : int
        Rows, features, targets, landmarks.
    dtype : dtype of X
    streaming : bool
        X is no array in memory, and is not copied.
    sampling, block
        As in :func:`~selfdistill_fast.spectrum`.
    """
    size, m = np.dtype(dtype).itemsize, min(n, m)
    pool = _pool(n, m, streaming)
    rows = min(n, _block_rows(block, m))
    held = (0 if streaming else n * d * size) + n * (p * (24 + 2 * size) + 8) + m * d * size
    stages = [0]
    if sampling in ("rpcholesky", "auto"):  # rows, factor, a batch of columns and its copies
        stages.append(pool * (d * (size + 8) + m * size + 6 * _BATCH * size + 48))
    if sampling in ("kmeans", "auto"):
        stages.append(pool * (d * (2 * size + 8) + 32) + 3 * m * d * size)
    if sampling == "auto" and _pilot_rows(pool, m):
        pilot = be, _pilot_rows(pool, m), d, p, m // 4, dtype
        smaller = nystrom_bytes(*pilot, sampling="rpcholesky", block=block)
        stages.append(2 * pool * d * size + smaller)
    landmarks = max(stages)
    triangle = m * m * (size + 32)
    cast = 8 if size < 8 else 0
    copy = d * size if streaming else 0  # a block that is joined from chunks
    one_pass = 24 * m * m + rows * (m * (size + 8 + cast) + 2 * copy + 8 * (2 * d + p)) + 8 * m * d
    solve = 8 * m * m + be.eigh_bytes(m, np.float64)
    reserve = _RESERVE + _PACKED * n_threads_now()
    if sampling == "kmeans" or (sampling == "auto" and _pilot_rows(pool, m)):
        reserve += _CLUSTERING
    return int(reserve + held + max(landmarks, triangle, one_pass, solve))


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
    X : the training rows, see :class:`~selfdistill_fast.spectrum.rows.Rows`
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
        y, w, fit_intercept = training.y, training.sample_weight, training.fit_intercept
        if isinstance(kernel, Precomputed):
            raise ValueError("solver='nystrom' computes κ(x, landmarks): it needs rows, not K")
        xp, options = be.xp, request.options
        sampling, block = options.sampling, options.block
        n, n_features = training.X.shape
        n_landmarks = 1000 if options.n_landmarks is None else int(options.n_landmarks)
        m = min(n_landmarks, training.n_kept)
        self.block = min(_block_rows(block, m), n)
        needed = nystrom_bytes(
            be,
            n,
            n_features,
            training.p,
            m,
            training.dtype,
            streaming=training.X.streaming,
            sampling=sampling,
            block=block,
        )
        self._prepare(training, request.max_memory, needed=needed)
        X = self.X
        random = np.random.default_rng(request.random_state)
        sample = xp.asarray(_sample(be, X, w, m, sampling, random))
        rows, weights = X[sample], None if w is None else w[sample]
        if kernel.pair:
            check_diagonal(_diagonal(be, rows, kernel), rows, kernel, X.dtype)
        if sampling == "auto":
            pilot = rows, y[sample], kernel, weights, fit_intercept
            sampling = _better_sampling(be, *pilot, m, block)
        self.sampling = sampling
        chosen = _landmarks(be, rows, weights, kernel, m, sampling, random)
        basis, chosen = rows[chosen], sample[chosen]
        del rows
        K = native_gram(be, basis, None, kernel)
        check_diagonal(xp.diagonal(K), None, kernel, X.dtype)
        if not kernel.definite:
            _check_symmetric(K, xp)
        order, R = _pivoted_cholesky(K, kernel, xp)
        del K
        self.basis = basis[order]
        self.landmarks = chosen[order]
        features = _Features(be, kernel, self.basis, R)
        # sums are about a point near the mean: that of the landmarks, whose features are Rᵀ
        middle = R.mean(1) if fit_intercept and len(R) else xp.zeros(len(R))
        self._aligned = (None if w is None else xp.sqrt(self.sample_weight), self._all(self.target))
        S, b, mean, traces = X.total(
            _Sums(features, middle if fit_intercept else None), self.block, *self._aligned
        )
        if not bool(xp.isfinite(traces).all()):
            raise _overflow(kernel, X.dtype)
        total, eps = float(traces[0]), float(xp.finfo(X.dtype).eps)
        if not kernel.definite and float(traces[1]) < -1e3 * m * eps * abs(total):
            raise _indefinite(f"{float(traces[1]):g} in sum on the diagonal of the other rows")
        squares = xp.diagonal(S) + (2.0 * mean + self.total_weight * middle) * middle
        pivots = xp.diagonal(R) ** 2
        # rounding of the trace, by the number of landmarks; the first pivot is max κ
        lost = eps * xp.cumsum(squares / pivots * pivots[:1])
        r = max(int((lost <= _LOST * eps * total).sum()), min(1, len(R)))
        if r < len(R):
            R, S, b, mean, middle = R[:r, :r], S[:r, :r], b[:r], mean[:r], middle[:r]
            self.basis, self.landmarks = self.basis[:r], self.landmarks[:r]
            features = _Features(be, kernel, self.basis, R)
        held = float(squares[:r].sum())
        self.approximation_error = max(total - held, 0.0) / total if total > 0 else 0.0
        self._lost = float(lost[r - 1]) if r else 0.0
        if fit_intercept:
            mean /= self.total_weight
            S -= (self.total_weight * mean)[:, None] * mean[None, :]
            middle = middle + mean
        d, G = be.eigh(S)
        del S
        self.scale = largest(d)
        if fit_intercept:
            self.scale += self.total_weight * float(middle @ middle)
        noise = int((d <= rounding(self.scale, d.dtype)).sum())
        d, G = d[noise:], G[:, noise:]
        self.k = int(d.shape[0])
        scale = xp.sqrt(d)
        z = (G.T @ b) / scale[:, None]
        spectral = d.astype(X.dtype), z.astype(X.dtype), X.dtype
        self.filters = Filters(be, *spectral, complement=True)
        self._model = _Basis(
            features,
            middle if fit_intercept else None,
            G,
            scale,
            z,
            self.total_weight,
        )

    @property
    def rounding(self) -> float:
        """Size of an eigenvalue that may be rounding alone, see the head of this module.

        Rows that are landmarks themselves are not extrapolated: where most rows are, they say
        little of new samples, which were seen to lose two digits more.
        """
        seen = max(rounding(self.scale, self.dtype), self._lost)
        return seen if 2 * len(self.landmarks) <= len(self.target) else _UNSEEN * seen

    # ------------------------------------------------------------ new points
    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): φ(x) G D^½, centred with an intercept.

        Parameters
        ----------
        X_new : array_like of shape (m, d)
            Of a dask array the result is one, too, and lazy.
        """
        if is_dask(X_new):
            job = _Project(self._model.alone(), self.dtype, self.block)
            return map_dask(X_new, self.basis.shape[1], job, (None, self.k), self.dtype)
        return _Project(self._model, self.dtype, self.block)(self.check_new(X_new))

    def dual(self, coordinates: Any) -> Any:
        """Dual coefficients of the landmarks, (…, r, p)."""
        xp = self.backend.xp
        u = self._in_features(coordinates)
        lead, (r, p) = u.shape[:-2], u.shape[-2:]
        S = math.prod(lead)
        flat = xp.moveaxis(u.reshape(S, r, p), 0, 1).reshape(r, S * p)
        if r and S * p:
            flat = self.backend.triangular_solve(self._model.features.R, flat, lower=False)
        return xp.moveaxis(flat.reshape(r, S, p), 1, 0).reshape(*lead, r, p).astype(self.dtype)

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

        job = _OnRows(self._model, flat(applied), flat(diagonals), self.dtype)
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
        return _NystromFold(self, rows)

    def _all(self, kept: Any) -> Any:
        """An array over kept rows with zeros for the rows of weight 0."""
        if self.rows is None:
            return kept
        full = self.backend.xp.zeros((self.n, *kept.shape[1:]), kept.dtype)
        full[self.rows] = kept
        return full


class _NystromFold(Fold):
    """Blocks V_S f V_Sᵀ + f(0) (I − V_S V_Sᵀ − q_S q_Sᵀ); a correction is held with V_Sᵀ δ."""

    def __init__(self, spectrum: NystromSpectrum, rows: Any) -> None:
        super().__init__(spectrum, rows)
        size, order = len(rows), min(len(rows), spectrum.k + 1)
        check_memory(
            spectrum.backend,
            8 * (3 * size * spectrum.k + 2 * order**2),
            f"a fold of {size} rows in {spectrum.k} coordinates",
            cure="use more folds, or fewer landmarks",
        )
        everywhere = rows if spectrum.rows is None else spectrum.rows[rows]
        root, _ = spectrum._aligned
        self.V = spectrum._model.rows(
            spectrum.X[everywhere], None if root is None else root[everywhere]
        )

    def solver(self, lam: float, filter_: Any) -> Callable[[Any], Any]:
        """By a factor of the block I − U Uᵀ, U = [V_S a^½, q_S], or of I − Uᵀ U if smaller.

        The second has the inverse I + U (I − UᵀU)⁻¹ Uᵀ (Woodbury) and the same smallest
        eigenvalue.
        """
        be, xp = self.spectrum.backend, self.spectrum.backend.xp
        f = filter_.astype("float64")
        U = self.V * xp.sqrt(xp.maximum(f[-1] - f[:-1], 0.0) / f[-1])
        if self.q is not None:
            U = xp.concatenate([U, self.q.astype("float64")[:, None]], 1)
        small = U.shape[1] < U.shape[0]
        block = -be.inner_product(U if small else U.T)
        block[xp.arange(len(block)), xp.arange(len(block))] += 1.0
        L = be.cholesky(block)

        def solve(r: Any) -> Any:
            r64 = r.astype("float64")
            x = r64 + U @ be.cholesky_solve(L, U.T @ r64) if small else be.cholesky_solve(L, r64)
            return (x / f[-1]).astype(r.dtype)

        return solve

    def push(self, delta: Any) -> Any:
        """(V_Sᵀ δ, δ)."""
        return self.V.T @ delta, delta

    def apply(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s(K)_SS δ_s on the complement of q."""
        result = 0.0 * handles[0][1]
        inner = sum((f[:-1] - f[-1])[:, None] * h for f, (h, _) in _zip(filters, handles))
        for f, (_, delta) in _zip(filters, handles):
            result = result + f[-1] * delta
            if self.q is not None:
                result = result - f[-1] * self.q[:, None] * (self.q @ delta)
        return (result + self.V @ inner).astype(self.spectrum.dtype)

    def coordinates(self, filters: list[Any], handles: list[Any]) -> Any:
        """Σ_s f_s V_Sᵀ δ_s, for filters without a complement (those of ``pure_filters``)."""
        return sum(f[:, None] * inside for f, (inside, _) in _zip(filters, handles))


def _zip(filters: list[Any], handles: list[Any]) -> Any:
    return zip(filters, handles, strict=True)


# ----------------------------------------------------- what is done with a block of rows
class _Features:
    """φ(x) = κ(x, L) R⁻¹ of a block of rows, float64 (b, r).

    These functions of a block are classes, so that they can be sent to a worker.
    """

    def __init__(self, be: Any, kernel: Kernel, basis: Any, R: Any) -> None:
        self.backend, self.kernel, self.basis, self.R = be, kernel, basis, R

    def __call__(self, X: Any) -> Any:
        if len(self.R) == 0:
            return self.backend.xp.zeros((X.shape[0], 0))
        K = native_gram(self.backend, X, self.basis, self.kernel)
        K = K.astype("float64", copy=False)
        return self.backend.triangular_solve(self.R.T, K.T, lower=True).T

    def alone(self) -> _Features:
        """The same for a worker: one thread."""
        return _Features(type(self.backend)(n_threads=1), self.kernel, self.basis, self.R)


class _Sums:
    """Sums over a block of √w(φ − c), see the head of this module."""

    def __init__(self, features: _Features, middle: Any) -> None:
        self.features, self.middle = features, middle

    def __call__(self, X: Any, root: Any, target: Any) -> tuple[Any, ...]:
        features = self.features
        xp = features.backend.xp
        phi = features(X)
        diagonal = _diagonal(features.backend, X, features.kernel)
        norms = xp.einsum("ij,ij->i", phi, phi)
        if self.middle is not None:
            phi -= self.middle
        if root is None:
            mean = phi.sum(0)
        else:
            phi *= root[:, None]
            kept = root > 0
            if not bool(kept.all()):  # whatever κ is there: it may even have overflowed
                phi[~kept] = 0.0
                diagonal, norms = xp.where(kept, diagonal, 0.0), xp.where(kept, norms, 0.0)
            mean = phi.T @ root
            diagonal, norms = root**2 * diagonal, root**2 * norms
        below = xp.minimum(diagonal - norms, 0.0)  # round-off, where K is semi-definite
        traces = xp.stack([diagonal.sum(), below.sum()])
        gram = features.backend.inner_product(phi)
        return gram, phi.T @ target.astype("float64"), mean, traces


class _Basis:
    """The basis of the model: rows of V, and basis functions at new points."""

    def __init__(
        self, features: _Features, mean: Any, G: Any, scale: Any, z: Any, total_weight: float
    ) -> None:
        self.features, self.mean, self.G, self.scale, self.z = features, mean, G, scale, z
        self.total_weight = total_weight

    def alone(self) -> _Basis:
        """The same for a worker: one thread."""
        rest = (self.mean, self.G, self.scale, self.z, self.total_weight)
        return _Basis(self.features.alone(), *rest)

    def centred(self, X: Any) -> Any:
        """φ(x) − μ, (b, r)."""
        phi = self.features(X)
        if self.mean is not None:
            phi -= self.mean
        return phi

    def rows(self, X: Any, root: Any) -> Any:
        """Rows of V = W^½ (φ(X) − μ) G D^−½, (b, k)."""
        phi = self.centred(X)
        if root is not None:
            phi *= root[:, None]
        V = phi @ self.G
        V /= self.scale
        return V


class _Project:
    """Basis functions (φ(x) − μ) G D^½ of new rows, (b, k)."""

    def __init__(self, model: _Basis, dtype: Any, block: int) -> None:
        self.model, self.dtype, self.block = model, dtype, block

    def __call__(self, X: Any) -> Any:
        model = self.model
        P = model.features.backend.xp.empty((X.shape[0], len(model.scale)), self.dtype)
        for start in range(0, X.shape[0], self.block):
            rows = slice(start, start + self.block)
            P[rows] = (model.centred(X[rows].astype(self.dtype)) @ model.G) * model.scale
        return P


class _OnRows:
    """Filtered targets (S, b, p) and diagonals (S, b) of a block of training rows."""

    def __init__(self, model: _Basis, applied: Any, diagonals: Any, dtype: Any) -> None:
        self.model, self.dtype = model, dtype
        self.applied, self.diagonals = (a.astype("float64") for a in (applied, diagonals))

    def __call__(self, X: Any, root: Any, target: Any) -> tuple[Any, Any]:
        model = self.model
        xp = model.features.backend.xp
        V = model.rows(X, root)
        if root is not None:
            V[root == 0] = 0.0
        target = target.astype("float64")
        b, p = target.shape
        S, k = len(self.applied), len(model.scale)
        F = xp.empty((S, b, p), self.dtype)
        if S:
            outside = target - V @ model.z
            along = xp.moveaxis(self.applied[:, :k, None] * model.z, 0, 1).reshape(k, S * p)
            inside = xp.moveaxis((V @ along).reshape(b, S, p), 1, 0)
            F[...] = inside + self.applied[:, k, None, None] * outside
        Q = xp.empty((len(self.diagonals), b), self.dtype)
        if len(Q):
            V *= V
            rest = 1.0 - V.sum(1)
            if model.mean is not None:
                rest -= (1.0 if root is None else root**2) / model.total_weight
            Q[...] = self.diagonals[:, :k] @ V.T + self.diagonals[:, k:] * xp.maximum(rest, 0.0)
        return F, Q


# ---------------------------------------------------------------------------- landmarks
def _sample(
    be: Any, X: Rows, w: Any, m: int, sampling: str, random: np.random.Generator
) -> np.ndarray:
    """Indices of the rows that landmarks are chosen from, in ascending order.

    Every row draws a key, and a uniform sample are the rows of the smallest keys: the same one
    for a seed, however the rows arrive.
    """
    keys = random.random(X.shape[0])
    if w is not None:
        keys[be.to_numpy(w) == 0] = np.inf
    kept = int(np.isfinite(keys).sum())
    size = m if sampling == "uniform" else _pool(kept, m, X.streaming)
    return np.sort(np.argpartition(keys, size - 1)[:size])


def _better_sampling(
    be: Any, X: Any, y: Any, kernel: Kernel, w: Any, fit_intercept: bool, m: int, block: Any
) -> str:
    """Which way of choosing landmarks predicts the held-out rows of a pilot better.

    Randomly pivoted Cholesky approximates K best, and spends landmarks on lone rows; where the
    data have many of these, which nothing else resembles, rows in the middle of clusters predict
    better. Neither K nor its approximation shows that: the targets do. Each is judged by its
    best λ.
    """
    xp, n = be.xp, _pilot_rows(X.shape[0], m)
    if n == 0 or not kernel.pair:  # distances may mean nothing to the caller's function
        return _WAYS[0]
    order = xp.asarray(np.random.default_rng(0).permutation(X.shape[0])[:n])
    test, train = order[: n // 4], order[n // 4 :]
    held = y[test].reshape(len(test), -1).astype("float64")
    variance = xp.square(held - held.mean(0)).mean(0)
    variance = xp.where(variance > 0.0, variance, 1.0)
    errors = []
    for way in _WAYS:
        model = NystromSpectrum(
            TrainingSet(
                be,
                Rows(be, X[train]),
                y[train],
                kernel,
                None if w is None else w[train],
                fit_intercept,
            ),
            Request(random_state=0, options=NystromOptions(m // 4, way, block)),
        )
        P, d = model.project(X[test]).astype("float64"), model.d.astype("float64")[:, None]
        best = math.inf
        for lam in largest(d) * np.geomspace(1e-9, 1.0, 19):
            F = P @ (model.z / (d + lam)) + model.y_mean
            squares = (xp.square(F - held) / variance).mean(1)
            best = min(best, float((squares if w is None else squares * w[test]).mean()))
        errors.append(best)
    return _WAYS[int(errors[1] < errors[0])]


def _landmarks(
    be: Any,
    rows: Any,
    w: Any,
    kernel: Kernel,
    m: int,
    sampling: str,
    random: np.random.Generator,
) -> Any:
    """Indices of at most m landmarks among some rows."""
    if sampling == "rpcholesky":
        return _rpcholesky(be, rows, kernel, m, random)
    if sampling == "kmeans":
        weights = None if w is None else be.to_numpy(w)
        return be.xp.asarray(_kmeans(be.to_numpy(rows), weights, m, random))
    return be.xp.arange(len(rows))


def _kmeans(rows: np.ndarray, weights: Any, m: int, random: np.random.Generator) -> np.ndarray:
    """Indices of the rows nearest to the centres of m clusters.

    By scikit-learn, whose Lloyd iterations move empty clusters to where rows are far from all
    others; on one thread, so always the same for a seed.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import pairwise_distances_argmin

    seed = int(random.integers(2**31 - 1))
    means = KMeans(m, init="random", n_init=1, max_iter=_LLOYD, random_state=seed)
    with one_blas_thread(), warnings.catch_warnings():
        # fewer distinct rows than clusters: then fewer landmarks
        warnings.simplefilter("ignore", ConvergenceWarning)
        centres = means.fit(rows, sample_weight=weights).cluster_centers_
        return np.unique(pairwise_distances_argmin(centres, rows))


def _rpcholesky(be: Any, X: Any, kernel: Kernel, m: int, random: np.random.Generator) -> Any:
    """Indices of at most m landmarks by randomly pivoted Cholesky (Chen et al. 2023).

    A row is drawn with probability proportional to what the landmarks so far leave of
    κ(x, x). Rows are proposed in batches and thinned so that the law is that of one at a time.
    """
    xp = be.xp
    diagonal = _diagonal(be, X, kernel)
    left = diagonal.copy()
    factor = xp.zeros((X.shape[0], m), X.dtype)
    chosen: list[int] = []
    floor = rounding(float(diagonal.max()), X.dtype)
    while len(chosen) < m:
        weights = be.to_numpy(xp.maximum(left, 0.0)).astype(np.float64)
        weights[weights <= floor] = 0.0
        if not weights.any():
            break  # the landmarks span everything
        batch = min(_BATCH, m - len(chosen), int(np.count_nonzero(weights)))
        proposed = random.choice(len(weights), size=batch, replace=True, p=weights / weights.sum())
        done = len(chosen)
        at = xp.asarray(proposed)
        G = be.to_numpy(native_gram(be, X[at], None, kernel)).astype(np.float64)
        F = be.to_numpy(factor[at, :done]).astype(np.float64)
        G = G - F @ F.T  # a batch of rows
        start = weights[proposed]
        accepted: list[int] = []
        triangle = np.zeros((batch, batch))
        for i in range(batch):
            rest = G[i, i] - triangle[i] @ triangle[i]
            if rest > floor and random.uniform() * start[i] <= rest:
                column = len(accepted)
                rest_column = G[:, i] - triangle @ triangle[i]
                triangle[:, column] = rest_column / np.sqrt(rest)
                accepted.append(i)
        if not accepted:
            continue
        rows = xp.asarray(proposed[accepted])
        L = np.tril(triangle[accepted][:, : len(accepted)])
        new = native_gram(be, X, X[rows], kernel)
        if kernel.pair:
            new -= factor[:, :done] @ factor[rows, :done].T
        else:  # the caller may keep its function's result
            new = new - factor[:, :done] @ factor[rows, :done].T
        new = be.triangular_solve(xp.asarray(L, dtype=X.dtype), new.T, lower=True).T
        factor[:, done : done + len(rows)] = new
        left -= xp.square(new, dtype="float64").sum(1)
        left[rows] = 0.0
        chosen.extend(proposed[accepted].tolist())
    return xp.asarray(chosen, dtype="int64")


def _diagonal(be: Any, X: Any, kernel: Kernel) -> Any:
    """κ(x, x) of every row, float64."""
    if kernel.pair:
        return ranges.diagonal(be, X, kernel)
    parts = [
        be.xp.diagonal(native_gram(be, X[i : i + _BATCH], None, kernel)).astype("float64")
        for i in range(0, X.shape[0], _BATCH)
    ]
    return be.xp.concatenate(parts) if parts else be.xp.zeros(0)


def _pivoted_cholesky(K: Any, kernel: Kernel, xp: Any) -> tuple[Any, Any]:
    """Order and upper factor R (r, r) with K[order][:, order] = RᵀR; pivots above round-off.

    Panels of rows; the rest of K is updated by one product for each.

    Raises
    ------
    numpy.linalg.LinAlgError
        A pivot is clearly negative, and the kernel is not definite by construction.
    """
    m = K.shape[0]
    A = K.astype("float64")  # a copy: the caller may keep the result of its function
    left = xp.diagonal(A).copy()
    floor = rounding(largest(left), K.dtype)
    R = xp.zeros((m, m))
    order: list[int] = []
    while len(order) < m:
        start = len(order)
        for i in range(start, min(start + _BATCH, m)):
            pivot = int(left.argmax())
            if not float(left[pivot]) > floor:
                break
            R[i] = (A[pivot] - R[start:i, pivot] @ R[start:i]) / float(left[pivot]) ** 0.5
            left = left - R[i] ** 2
            left[pivot] = 0.0
            order.append(pivot)
        panel = R[start : len(order)]
        if len(panel) < _BATCH:
            break
        for first in range(0, m, 1024):
            A[first : first + 1024] -= panel[:, first : first + 1024].T @ panel
    if m and not kernel.definite and float(left.min()) < -m * floor:
        raise _indefinite(f"{float(left.min()):g} on their own diagonal")
    chosen = xp.asarray(order, dtype="int64")
    return chosen, xp.triu(R[: len(order)][:, chosen])


def _indefinite(what: str) -> Exception:
    return LinAlgError(
        f"K is not positive semi-definite: the landmarks leave {what}, far below round-off; "
        "use a positive semi-definite kernel"
    )


def _overflow(kernel: Kernel, dtype: Any) -> ValueError:
    return ValueError(
        f"{kernel!r} overflows {dtype} on these rows: scale X down"
        + (" or use float64" if dtype == np.float32 else "")
    )
