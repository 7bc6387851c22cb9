"""Ridge regression in feature space: the spectrum of features that are added up in blocks.

For features φ(x) (r,) of a row, one pass over row blocks adds up, in float64,

    S = Φᵀ W Φ (r, r),   Φᵀ W y (r, p)   and   Σ w φ;

with weights W and an intercept (base.py) μ is the weighted mean of φ, and

    H W^½ φ(X) = V D^½ Gᵀ,   from   S − (Σ w) μ μᵀ = G D Gᵀ.

Then everything is as for a full spectrum, with k = r eigenvalues instead of n, and a
complement of V (and q) where the kernel matrix ΦΦᵀ is zero: A = V a Vᵀ there, and I − A is
the identity outside of V. Eigenvalues below rounding are raised to it and stay: V is then short
there, but V D^½ Gᵀ and so all that is linear in D is not, and a new sample may be far along G.
A filter is held as its values on the eigenvalues and, last, on that complement: (k + 1,).
project(x) = (φ(x) − μ) G D^½. V (n, k) is not held: what needs its rows (leave-one-out, folds)
computes them again, block by block, in another pass.

S squares the condition number of Φ, but not that of the problem: D are the eigenvalues of the
kernel matrix. So the digits are those of a full spectrum.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.feature_space.blocks import Basis, FeatureMap, OnRows, Project, Sums
from selfdistill_fast._solvers.feature_space.fold import FeatureFold
from selfdistill_fast._solvers.fold import Fold
from selfdistill_fast._solvers.matrix import check_weighted, overflow, rounding
from selfdistill_fast._solvers.sources import features_of, is_dask, map_dask
from selfdistill_fast._solvers.spectral import Filters
from selfdistill_fast._validation import largest

__all__ = ["FeatureSpectrum"]

#: sums are recomputed about the mean where centring would subtract this many times what remains
_FAR = 10.0


class FeatureSpectrum(Spectrum):
    """Spectrum of a model in feature space; ``block`` rows are processed at a time."""

    streams = True
    #: whether features are known exactly: then only what is left of the mean after the first
    #: centring is subtracted from the sums, and counts for their rounding
    exact_features = False
    #: Σw ‖μ‖² for the mean μ of the features, with an intercept
    _away = 0.0
    #: order in which the sums over blocks are added; see sources
    pairwise = False
    block: int

    def _sums(self, job: type[Sums], features: FeatureMap, middle: Any) -> tuple[Any, ...]:
        """Sums of one pass over the rows, or two: see the head of this module.

        Returns S, ΦᵀWy, Σ √w(φ − c), the traces of the job, and c: with an intercept ``middle``,
        a point near the mean of φ, or the mean itself, if that point is far from it; else 0.
        """
        xp = self.backend.xp
        root = None if self.sample_weight is None else xp.sqrt(self.sample_weight)
        self._aligned = (root, self._all(self.target))
        total = functools.partial(self.X.total, pairwise=self.pairwise)
        job_at = functools.partial(job, features)
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            sums = total(job_at(middle if self.fit_intercept else None), self.block, *self._aligned)
            if not bool(xp.isfinite(sums[3]).all()):
                raise overflow(self.kernel, self.dtype)
        middle = middle if self.fit_intercept else xp.zeros(len(sums[0]))
        far = float(sums[2] @ sums[2]) / self.total_weight
        if self.fit_intercept and far > _FAR * max(float(xp.trace(sums[0])) - far, 0.0):
            middle = middle + sums[2] / self.total_weight
            sums = total(job_at(middle), self.block, *self._aligned)
        return (*sums, middle)

    def _decompose(self, features: FeatureMap, S: Any, b: Any, mean: Any, middle: Any) -> None:
        """Eigenvalues and filters of the model from its sums."""
        be, xp, total_weight = self.backend, self.backend.xp, self.total_weight
        if self.fit_intercept:
            mean /= total_weight
            S -= (total_weight * mean)[:, None] * mean[None, :]
            middle = middle + mean
        d, G = be.eigh(S)
        self.scale = largest(d)
        if self.fit_intercept:
            self._away = total_weight * float(middle @ middle)
            left = total_weight * float(mean @ mean)
            self.scale += left if self.exact_features else self._away
        check_weighted(self.scale, self.dtype)
        # raised, not dropped: a new sample may be far along a direction that is negligible here
        d = xp.maximum(d, rounding(self.scale, d.dtype) or 1.0)
        self.k = int(d.shape[0])
        scale = xp.sqrt(d)
        z = (G.T @ b) / scale[:, None]
        dtype = self.dtype
        self.filters = Filters(be, d.astype(dtype), z.astype(dtype), dtype, complement=True)
        mean = middle if self.fit_intercept else None
        self._model = Basis(features, mean, G, scale, z, total_weight)

    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): φ(x) G D^½, centred with an intercept.

        Of a dask array the result is one, too, and lazy.
        """
        if is_dask(X_new):
            X_new = features_of(X_new, self.kernel)
            job = Project(self._model.alone(), self.dtype, self.block)
            return map_dask(X_new, self.basis.shape[1], job, (None, self.k), self.dtype)
        return Project(self._model, self.dtype, self.block)(self.check_new(X_new))

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
        return FeatureFold(self, rows)

    def _all(self, kept: Any) -> Any:
        """An array over kept rows with zeros for the rows of weight 0."""
        if self.rows is None:
            return kept
        full = self.backend.xp.zeros((self.n, *kept.shape[1:]), kept.dtype)
        full[self.rows] = kept
        return full
